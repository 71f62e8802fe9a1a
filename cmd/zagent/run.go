// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"github.com/ztunnel-go/ztunnel/cmd/zagent/cni"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/kube"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/podns"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/roster"
	"github.com/ztunnel-go/ztunnel/cmd/zagent/static"
)

// defaultSocket is INPOD_UDS's default of the proxy.
const defaultSocket = "/var/run/ztunnel/ztunnel.sock"

// Requests to the API server that one node may make in a second, and at once.
const (
	apiRate  = 80
	apiBurst = 160
)

// agent is the command run.
func (p process) agent(ctx context.Context, args []string) error {
	f, logger := p.flags("run", "")
	node := f.String("node", p.env.node, "the node's `name` in the API (NODE_NAME)")
	kubeconfig := f.String("kubeconfig", p.env.kubeconfig, "`file` to reach the API with; none: as a pod does (KUBECONFIG)")
	socket := f.String("socket", defaultSocket, "`path` where the proxy connects, its INPOD_UDS")
	cniSocket := f.String("cni-socket", cni.DefaultSocket, "`path` where the CNI plugin connects")
	listen := f.String("listen", ":15023", "`address` of /healthz, /readyz and /metrics")
	proc := f.String("proc", "/proc", "`directory` of procfs with all processes of the node")
	exclude := f.String("exclude-namespaces", "kube-system", "`names` of namespaces that are never captured, by commas")
	system := f.String("system-namespace", "istio-system", "`namespace` of the proxies")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if *node == "" {
		return errors.New("whose node is this? -node, or NODE_NAME")
	}
	client, err := apiClient(*kubeconfig)
	if err != nil {
		return err
	}
	finder, err := podns.NewFinder(*proc)
	if err != nil {
		return err
	}
	log := logger()
	events, stop := recorder(client, *node)
	defer stop()
	return serveKubernetes(ctx, kubernetesNode{
		socket: *socket, cniSocket: *cniSocket, listen: *listen, log: log,
		config: kube.Config{
			Node: *node, Client: client, Finder: finder, Events: events, Logger: log,
			Rules: kube.Rules{Exclude: list(*exclude), SystemNamespace: *system},
		},
	})
}

func apiClient(kubeconfig string) (kubernetes.Interface, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	cfg.QPS, cfg.Burst, cfg.UserAgent = apiRate, apiBurst, "zagent"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	return client, nil
}

func recorder(client kubernetes.Interface, node string) (record.EventRecorder, func()) {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "zagent", Host: node}), broadcaster.Shutdown
}

// A kubernetesNode is what serveKubernetes needs.
type kubernetesNode struct {
	socket, cniSocket, listen string
	config                    kube.Config // without its Roster
	log                       *slog.Logger
}

// serveKubernetes serves until ctx ends or something fails. Proxies and the
// plugin are heard when the API has been.
func serveKubernetes(ctx context.Context, n kubernetesNode) error {
	release, err := claim(n.socket)
	if err != nil {
		return err
	}
	defer release()
	if err := os.MkdirAll(filepath.Dir(n.cniSocket), 0o700); err != nil {
		return err
	}
	var controller *kube.Controller
	list := roster.New(roster.Config{Socket: n.socket, Logger: n.log, Changed: func(uid string) { controller.Changed(uid) }})
	defer list.Close()
	n.config.Roster = list
	if controller, err = kube.New(n.config); err != nil {
		return err
	}
	g := newGroup(ctx)
	counted := &cniCounts{}
	var ready atomic.Bool
	g.serveHTTP(n.listen, pages(list, counted, ready.Load))
	g.run(func(ctx context.Context) error {
		return controller.Run(ctx, func() {
			g.run(list.Run)
			g.run(func(ctx context.Context) error {
				return cni.Serve(ctx, n.cniSocket, counted.count(controller.CNI), n.log)
			})
			ready.Store(true)
			n.log.Info("ready", "node", n.config.Node, "pods", len(list.All()))
		})
	})
	return g.wait()
}

// static is the command of that name.
func (p process) static(ctx context.Context, args []string) error {
	f, logger := p.flags("static", " FILE")
	socket := f.String("socket", defaultSocket, "`path` where the proxy connects, its INPOD_UDS")
	listen := f.String("listen", "127.0.0.1:15023", "`address` of /healthz, /readyz and /metrics; empty: none")
	proc := f.String("proc", "/proc", "`directory` of procfs")
	cgroups := f.String("cgroup-root", "/sys/fs/cgroup", "`directory` of cgroup version 2")
	named := f.String("netns-dir", "/run/netns", "`directory` of named network namespaces")
	if err := parse(f, args, 1); err != nil {
		return err
	}
	finder, err := podns.NewFinder(*proc)
	if err != nil {
		return err
	}
	return serveStatic(ctx, *socket, *listen, static.Config{
		File: f.Arg(0), Proc: *proc, CgroupRoot: *cgroups, NamedNetNS: *named, Hosts: finder.Hosts, Logger: logger(),
	})
}

func serveStatic(ctx context.Context, socket, listen string, cfg static.Config) error {
	release, err := claim(socket)
	if err != nil {
		return err
	}
	defer release()
	cfg.Roster = roster.New(roster.Config{Socket: socket, Logger: cfg.Logger})
	defer cfg.Roster.Close()
	keeper := static.New(cfg)
	if err := keeper.Load(); err != nil {
		return err
	}
	g := newGroup(ctx)
	if listen != "" {
		g.serveHTTP(listen, pages(cfg.Roster, &cniCounts{}, func() bool { return true }))
	}
	g.run(cfg.Roster.Run)
	g.run(func(ctx context.Context) error { keeper.Run(ctx); return nil })
	return g.wait()
}

// claim makes sure that no other agent of ours serves the socket, and that its
// directory is there.
func claim(socket string) (release func(), _ error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(socket+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another agent serves %s (%s.lock is locked)", socket, socket)
	}
	return func() { lock.Close() }, nil
}

// A group is what runs side by side; the first that fails ends the others.
type group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup
}

func newGroup(ctx context.Context) *group {
	g := &group{}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	return g
}

func (g *group) run(fn func(context.Context) error) {
	g.tasks.Go(func() {
		if err := fn(g.ctx); err != nil {
			g.cancel(err)
		}
	})
}

// wait is for the end of all; the end of the context that was given is no error.
func (g *group) wait() error {
	<-g.ctx.Done()
	g.tasks.Wait()
	if err := context.Cause(g.ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// headerWait bounds what a client may take to ask for a page.
const headerWait = 5 * time.Second

func (g *group) serveHTTP(address string, h http.Handler) {
	g.run(func(ctx context.Context) error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		s := &http.Server{Handler: h, ReadHeaderTimeout: headerWait}
		stop := context.AfterFunc(ctx, func() { s.Close() })
		defer stop()
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}
