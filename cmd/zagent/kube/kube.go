// SPDX-License-Identifier: Apache-2.0

// Package kube decides from the Kubernetes API which pods of a node are
// captured, and puts them on the roster.
//
// Two roads lead there. A pod that starts is brought by the CNI plugin, which
// knows its namespace and waits until the proxy serves it. A pod that runs
// already, because its label came later or the agent was away, is found among
// the processes; it is called late, and what it has open is ended. Both decide
// by the same rules and meet in the roster. A pod that the API knows and that
// has no address yet is left to the plugin.
//
// When the proxy serves a pod, it is annotated for istiod; when it is to be
// served no more, the annotation goes first, so that no peer sends tunnels
// where nobody takes them.
package kube

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/podns"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/roster"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A Finder finds namespaces; see package podns.
type Finder interface {
	Find(wanted ...podns.Wanted) (map[string]*netns.NS, map[string]error)
	Verify(ns *netns.NS, addrs []netip.Addr) error
}

// A Config says what a Controller works with.
type Config struct {
	// Node is the name of the node in the API.
	Node string
	// Client speaks to the API.
	Client kubernetes.Interface
	// Roster gets the pods. Its Changed must be the Controller's.
	Roster *roster.Roster
	// Finder looks at the node's processes.
	Finder Finder
	// Rules say who is captured.
	Rules Rules
	// Events tells pods' owners what happens; may be nil.
	Events record.EventRecorder
	// Logger may be nil.
	Logger *slog.Logger
}

// A Controller keeps the roster in accord with the API.
type Controller struct {
	cfg        Config
	log        *slog.Logger
	pods       listers.PodLister
	namespaces listers.NamespaceLister
	podCache   cache.SharedIndexInformer
	nsCache    cache.SharedIndexInformer
	queue      workqueue.TypedRateLimitingInterface[string]
	synced     atomic.Bool

	locks [64]sync.Mutex // a pod's, by its key: the two roads do not cross

	mu      sync.Mutex
	uids    map[string]string // guarded by mu; of pods that may be on the roster, by key
	trouble map[string]string // guarded by mu; what was told last of a pod, by uid
}

// Retries of a pod that cannot be captured begin and end with these pauses.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// New makes a Controller that does nothing until Run.
func New(cfg Config) (*Controller, error) {
	c := &Controller{cfg: cfg, log: cfg.Logger, uids: map[string]string{}, trouble: map[string]string{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry))
	ofNode := informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", cfg.Node).String()
	})
	pods := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, ofNode, informers.WithTransform(slim)).Core().V1().Pods()
	namespaces := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(slim)).Core().V1().Namespaces()
	c.pods, c.podCache = pods.Lister(), pods.Informer()
	c.namespaces, c.nsCache = namespaces.Lister(), namespaces.Informer()
	if _, err := c.podCache.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: c.enqueue, UpdateFunc: func(_, pod any) { c.enqueue(pod) }, DeleteFunc: c.enqueue,
	}); err != nil {
		return nil, err
	}
	_, err := c.nsCache.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(ns any) { c.enqueueAll(ns) },
		UpdateFunc: func(before, now any) {
			if before.(*corev1.Namespace).Labels[modeLabel] != now.(*corev1.Namespace).Labels[modeLabel] {
				c.enqueueAll(now)
			}
		},
	})
	return c, err
}

// slim leaves out what nobody here reads, so that a large node's pods are small.
func slim(object any) (any, error) {
	if o, ok := object.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	if pod, ok := object.(*corev1.Pod); ok {
		pod.Spec = corev1.PodSpec{NodeName: pod.Spec.NodeName, HostNetwork: pod.Spec.HostNetwork, ServiceAccountName: pod.Spec.ServiceAccountName}
		pod.Status = corev1.PodStatus{Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs}
	}
	return object, nil
}

func (c *Controller) enqueue(object any) {
	if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
		c.queue.Add(key)
	}
}

func (c *Controller) enqueueAll(namespace any) {
	ns, ok := namespace.(*corev1.Namespace)
	if !ok {
		return
	}
	pods, _ := c.pods.Pods(ns.Name).List(labels.Everything()) // of a cache: it does not fail
	for _, pod := range pods {
		c.enqueue(pod)
	}
}

// Changed is for the roster: what the proxy said of a pod.
func (c *Controller) Changed(uid string) {
	s, ok := c.cfg.Roster.Get(uid)
	if !ok {
		return
	}
	key := s.Pod.Namespace + "/" + s.Pod.Name
	if s.State == roster.Refused {
		c.queue.AddRateLimited(key)
		return
	}
	c.queue.Add(key)
}

// Synced says whether the API's state has been seen and the roster filled
// once. Proxies must not be told before: what is not on it yet would look gone.
func (c *Controller) Synced() bool { return c.synced.Load() }

// workers is how many pods are worked on at a time.
const workers = 4

// Run follows the API until ctx ends. It calls ready when the roster has been
// filled once.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	var running sync.WaitGroup
	defer running.Wait()
	defer c.queue.ShutDown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, informer := range []cache.SharedIndexInformer{c.podCache, c.nsCache} {
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), c.podCache.HasSynced, c.nsCache.HasSynced) {
		return nil // the end came first
	}
	c.fill()
	c.synced.Store(true)
	ready()
	for range workers {
		running.Go(func() { c.work(ctx) })
	}
	<-ctx.Done()
	return nil
}

// fill puts on the roster what runs already. All pods are looked for at once:
// one by one each would cost a look at all processes.
func (c *Controller) fill() {
	pods, _ := c.pods.List(labels.Everything()) // of a cache: it does not fail
	var captured []*corev1.Pod
	var wanted []podns.Wanted
	for _, pod := range pods {
		ns, err := c.namespaces.Get(pod.Namespace)
		if err != nil || pod.Spec.NodeName != c.cfg.Node || !c.cfg.Rules.Decide(pod, ns.Labels).Capture {
			continue
		}
		captured = append(captured, pod)
		if addrs := addresses(pod); len(addrs) > 0 {
			wanted = append(wanted, podns.Wanted{UID: cgroupUID(pod), Addrs: addrs})
		}
	}
	found, _ := c.cfg.Finder.Find(wanted...) // why not is told by the work that follows
	for _, pod := range captured {
		if ns := found[cgroupUID(pod)]; ns != nil || isMarked(pod) {
			c.list(pod, roster.Pod{NS: ns, Late: !isMarked(pod)})
		}
	}
}

// list puts a pod on the roster.
func (c *Controller) list(pod *corev1.Pod, p roster.Pod) {
	p.UID, p.Name, p.Namespace, p.ServiceAccount = string(pod.UID), pod.Name, pod.Namespace, pod.Spec.ServiceAccountName
	c.mu.Lock()
	c.uids[pod.Namespace+"/"+pod.Name] = p.UID
	c.mu.Unlock()
	c.cfg.Roster.Set(p)
}

func (c *Controller) work(ctx context.Context) {
	for {
		key, over := c.queue.Get()
		if over {
			return
		}
		lock := c.lock(key)
		lock.Lock()
		err := c.reconcile(ctx, key)
		lock.Unlock()
		switch {
		case err == nil:
			c.queue.Forget(key)
		case errors.Is(err, errLater): // the roster's answer has it done
		case ctx.Err() == nil:
			c.log.Warn("a pod is tried again", "pod", key, "error", err)
			c.queue.AddRateLimited(key)
		}
		c.queue.Done(key)
	}
}

func (c *Controller) lock(key string) *sync.Mutex {
	h := fnv.New32a()
	h.Write([]byte(key))
	return &c.locks[h.Sum32()%uint32(len(c.locks))]
}

// note tells of a pod's trouble, once as long as it stays the same; no error
// ends it.
func (c *Controller) note(pod *corev1.Pod, err error) error {
	text := ""
	if err != nil {
		text = err.Error()
	}
	c.mu.Lock()
	was := c.trouble[string(pod.UID)]
	c.trouble[string(pod.UID)] = text
	if text == "" {
		delete(c.trouble, string(pod.UID))
	}
	c.mu.Unlock()
	if text != "" && text != was {
		c.event(pod, corev1.EventTypeWarning, "CaptureFailed", "the pod is not captured by the mesh: "+text)
	}
	return err
}

func (c *Controller) event(pod *corev1.Pod, kind, reason, text string) {
	if c.cfg.Events != nil {
		c.cfg.Events.Event(pod, kind, reason, text)
	}
}

// forget is the end of all that is known of a pod.
func (c *Controller) forget(key, uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.trouble, uid)
	if c.uids[key] == uid {
		delete(c.uids, key)
	}
}

func (c *Controller) uidOf(key string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.uids[key]
}

var errLater = errors.New("the proxy is asked again")

func splitKey(key string) (namespace, name string, err error) {
	if namespace, name, err = cache.SplitMetaNamespaceKey(key); err != nil {
		return "", "", fmt.Errorf("pod %q: %w", key, err)
	}
	return namespace, name, nil
}
