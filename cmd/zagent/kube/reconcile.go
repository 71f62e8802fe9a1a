// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/cni"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/podns"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/roster"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// reconcile does what a pod's state asks for. Its lock is held.
func (c *Controller) reconcile(ctx context.Context, key string) error {
	namespace, name, err := splitKey(key)
	if err != nil {
		c.log.Error("a key that is none", "error", err)
		return nil
	}
	pod, err := c.pods.Pods(namespace).Get(name)
	listed := c.uidOf(key)
	if listed != "" && (err != nil || listed != string(pod.UID)) {
		comes, err := c.comes(ctx, namespace, name, listed)
		if err != nil {
			return err
		}
		if !comes {
			c.cfg.Roster.Drop(listed)
			c.forget(key, listed)
		}
	}
	if err != nil || pod.Spec.NodeName != c.cfg.Node {
		return nil
	}
	ns, err := c.namespaces.Get(namespace)
	if err != nil {
		return fmt.Errorf("namespace of the pod: %w", err)
	}
	verdict := c.cfg.Rules.Decide(pod, ns.Labels)
	if !verdict.Capture {
		return c.release(ctx, pod, verdict.Reason)
	}
	return c.capture(ctx, pod, verdict.Reason)
}

// comes says whether a pod that the cache does not have, or not with this uid,
// is in the API nevertheless: the plugin may have brought it before the
// informer. An API that does not answer is no reason to let a pod go.
func (c *Controller) comes(ctx context.Context, namespace, name, uid string) (bool, error) {
	pod, err := c.cfg.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("pod: %w", err)
	}
	return string(pod.UID) == uid, nil
}

// release has a pod captured no more.
func (c *Controller) release(ctx context.Context, pod *corev1.Pod, reason string) error {
	_, listed := c.cfg.Roster.Get(string(pod.UID))
	_, marked := pod.Annotations[redirectionAnnotation]
	if !listed && !marked {
		return c.note(pod, nil)
	}
	var err error
	if marked {
		err = c.mark(ctx, pod, nil)
	}
	if err == nil || listed {
		c.cfg.Roster.Drop(string(pod.UID))
		c.forget(pod.Namespace+"/"+pod.Name, string(pod.UID))
	}
	if err != nil {
		return err
	}
	c.log.Info("a pod is captured no more", "name", pod.Name, "namespace", pod.Namespace, "uid", pod.UID, "reason", reason)
	c.event(pod, corev1.EventTypeNormal, "CaptureDisabled", "the mesh captures the pod no more: "+reason)
	return nil
}

// capture has a pod captured.
func (c *Controller) capture(ctx context.Context, pod *corev1.Pod, reason string) error {
	s, _ := c.cfg.Roster.Get(string(pod.UID))
	switch s.State {
	case roster.Served:
		_ = c.note(pod, nil)
		if isMarked(pod) {
			return nil
		}
		enabled := redirectionEnabled
		if err := c.mark(ctx, pod, &enabled); err != nil {
			return err
		}
		if s.Pod.Late {
			reason += "; it ran before, and what it had open was ended"
		}
		c.event(pod, corev1.EventTypeNormal, "CaptureEnabled", "the mesh captures the pod: "+reason)
		return nil
	case roster.Waiting:
		return nil // Changed tells how it ends
	case roster.Refused:
		_ = c.note(pod, s.Err)
		c.cfg.Roster.Again(string(pod.UID))
		return errLater
	}
	return c.note(pod, c.find(pod))
}

// find looks for the namespace of a pod that runs.
func (c *Controller) find(pod *corev1.Pod) error {
	addrs := addresses(pod)
	if len(addrs) == 0 {
		return nil // it has not started: CNI brings it, or the update with its address
	}
	uid := cgroupUID(pod)
	found, why := c.cfg.Finder.Find(podns.Wanted{UID: uid, Addrs: addrs})
	ns := found[uid]
	if ns == nil {
		return fmt.Errorf("its network namespace was not found: %w", why[uid])
	}
	if err := c.unowned(ns, string(pod.UID)); err != nil {
		ns.Close()
		return err
	}
	c.list(pod, roster.Pod{NS: ns, Late: !isMarked(pod)})
	return nil
}

// unowned is an error if a namespace is another pod's.
func (c *Controller) unowned(ns *netns.NS, uid string) error {
	if owner, ok := c.cfg.Roster.Owner(ns.ID()); ok && owner != uid {
		return fmt.Errorf("its network namespace is that of pod %s", owner)
	}
	return nil
}

// mark writes the annotation, or with nil removes it. It goes by the pod's
// status, for which a right suffices that cannot change what the pod runs.
func (c *Controller) mark(ctx context.Context, pod *corev1.Pod, value *string) error {
	text := "null"
	if value != nil {
		text = fmt.Sprintf("%q", *value)
	}
	patch := fmt.Sprintf(`{"metadata":{"uid":%q,"annotations":{%q:%s}}}`, pod.UID, redirectionAnnotation, text)
	_, err := c.cfg.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // it is gone, or another has its name
		return nil
	}
	if err != nil {
		return fmt.Errorf("annotate the pod: %w", err)
	}
	return nil
}

// CNI does what the plugin asks; it is a [cni.ServeFunc].
func (c *Controller) CNI(ctx context.Context, req cni.Request, ns *netns.NS) error {
	switch req.Op {
	case cni.Add:
		return c.add(ctx, req, ns)
	case cni.Check:
		defer ns.Close()
		return c.check(ctx, req)
	default:
		for _, s := range c.cfg.Roster.All() {
			if s.Pod.Name == req.Name && s.Pod.Namespace == req.Namespace {
				c.cfg.Roster.Leave(s.Pod.UID, req.Sandbox)
			}
		}
		return nil
	}
}

// add has a pod captured that starts, and returns when it is.
func (c *Controller) add(ctx context.Context, req cni.Request, ns *netns.NS) error {
	pod, err := c.bring(ctx, req, ns)
	if err != nil || pod == nil {
		return err
	}
	err = c.cfg.Roster.Await(ctx, string(pod.UID))
	if err != nil {
		// The runtime takes the sandbox down and makes another.
		c.cfg.Roster.Leave(string(pod.UID), req.Sandbox)
		return c.note(pod, err)
	}
	c.queue.Add(pod.Namespace + "/" + pod.Name) // to be annotated
	return nil
}

// bring puts a pod that starts on the roster; nil: it is none of ours. It owns
// ns.
func (c *Controller) bring(ctx context.Context, req cni.Request, ns *netns.NS) (*corev1.Pod, error) {
	lock := c.lock(req.Namespace + "/" + req.Name)
	lock.Lock()
	defer lock.Unlock()
	pod, verdict, err := c.ask(ctx, req)
	if err == nil && verdict.Capture {
		if err = c.cfg.Finder.Verify(ns, req.Addrs); err == nil {
			err = c.unowned(ns, string(pod.UID))
		}
		if err != nil {
			err = c.note(pod, fmt.Errorf("the runtime's network namespace: %w", err))
		}
	}
	if err != nil || !verdict.Capture {
		ns.Close()
		return nil, err
	}
	c.list(pod, roster.Pod{NS: ns, Sandbox: req.Sandbox})
	return pod, nil
}

// check says whether a pod that is to be captured is.
func (c *Controller) check(ctx context.Context, req cni.Request) error {
	pod, verdict, err := c.ask(ctx, req)
	if err != nil || !verdict.Capture {
		return err
	}
	s, _ := c.cfg.Roster.Get(string(pod.UID))
	if s.State != roster.Served {
		return errors.Join(errors.New("the pod is not captured"), s.Err)
	}
	return nil
}

// ask decides about the pod of a request. The runtime may be ahead of the
// cache, so what that lacks is asked of the API.
func (c *Controller) ask(ctx context.Context, req cni.Request) (*corev1.Pod, Verdict, error) {
	pod, err := c.pods.Pods(req.Namespace).Get(req.Name)
	if err != nil || !isOf(pod, req.UID) {
		pod, err = c.cfg.Client.CoreV1().Pods(req.Namespace).Get(ctx, req.Name, metav1.GetOptions{})
	}
	if err != nil {
		return nil, Verdict{}, fmt.Errorf("pod %s/%s: %w", req.Namespace, req.Name, err)
	}
	if !isOf(pod, req.UID) {
		return nil, Verdict{}, fmt.Errorf("pod %s/%s has uid %s in the API, and %s for the runtime", req.Namespace, req.Name, pod.UID, req.UID)
	}
	ns, err := c.namespaces.Get(req.Namespace)
	if err != nil {
		ns, err = c.cfg.Client.CoreV1().Namespaces().Get(ctx, req.Namespace, metav1.GetOptions{})
	}
	if err != nil {
		return nil, Verdict{}, fmt.Errorf("namespace %s: %w", req.Namespace, err)
	}
	return pod, c.cfg.Rules.Decide(pod, ns.Labels), nil
}

// isOf says whether a pod has the uid that a runtime tells, if it tells one.
func isOf(pod *corev1.Pod, uid string) bool {
	return uid == "" || slices.Contains([]string{string(pod.UID), pod.Annotations[mirrorAnnotation]}, uid)
}
