// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// defaultPinDir is BPF_PIN_DIR's default.
const defaultPinDir = "/sys/fs/bpf/ztunnel"

// upkeepInterval is how often pins of dead namespaces are collected and
// kubelet's cgroup is looked up again; systemd makes a new one at a restart.
const upkeepInterval = 10 * time.Second

// A Node is the node's part of capture. Its methods may be called by several
// goroutines.
type Node struct {
	cfg    Config
	log    *slog.Logger
	events events
	checks checkCounts

	bpf    *redirect.Node // nil: no pod can have tier A
	reason error          // why, then
	place  place          // where the programs are; zero without them

	// adding is held by Add, and exclusively by ReleaseStrays: a pod that comes
	// back must not lose what it has just taken over.
	adding sync.RWMutex
	mu     sync.Mutex
	ending map[*Pod]struct{}   // guarded by mu; those that want to hear of their listeners' end
	known  map[uint64]struct{} // guarded by mu; namespaces added in this process, by cookie, until their capture is removed

	found map[uint64]struct{} // guarded by mu; namespaces captured when the process began, or since without being added; see Orphaned

	sweeps budget

	stop   context.CancelFunc
	upkeep sync.WaitGroup // two goroutines; end when stop is called
	close  sync.Once
	err    error // of Close
}

// events are the counters of user space.
type events struct {
	recaptured, repaired, unhealthy, collected, strays, takenBack atomic.Uint64
}

// Open loads the node's programs or takes over those of the process before. In
// mode istio-cni it loads nothing. A node that cannot have tier A is no error
// here: the reason is logged, and every pod that needs the tier is refused with
// it.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Node, error) {
	cfg = cfg.withDefaults()
	if cfg.Mode > IstioCNI || cfg.ProbeScope > ProbeKubelet {
		return nil, fmt.Errorf("capture: mode %d or probe scope %d does not exist", cfg.Mode, cfg.ProbeScope)
	}
	if cfg.Mode != IstioCNI && (cfg.Mark&redirect.MarkCaptureMask == redirect.MarkCapture ||
		cfg.Mark&redirect.MarkDeliveryMask == redirect.MarkDelivery) {
		return nil, fmt.Errorf("capture: PACKET_MARK %#x would route the proxy's own connections back to it: it may be neither %#x/%#x nor %#x/%#x",
			cfg.Mark, redirect.MarkCapture, redirect.MarkCaptureMask, redirect.MarkDelivery, redirect.MarkDeliveryMask)
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: log, known: map[uint64]struct{}{}, found: map[uint64]struct{}{}, ending: map[*Pod]struct{}{}}
	own, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	if cfg.Mode == IstioCNI {
		n.reason = errors.New("CAPTURE=istio-cni")
		return n, nil
	}
	if n.reason = n.load(); n.reason != nil {
		log.Error("eBPF capture is not possible on this node", slog.Any("err", n.reason))
		return n, nil
	}
	n.upkeep.Go(func() { n.keepUp(own) })
	n.upkeep.Go(func() { n.hear(own) })
	return n, nil
}

func (c Config) withDefaults() Config {
	if c.PinDir == "" {
		c.PinDir = defaultPinDir
	}
	if c.Mark == 0 {
		c.Mark = defaultMark
	}
	return c
}

// load does what tier A needs of the node; its error names what is missing.
func (n *Node) load() error {
	if err := redirect.Supported(); err != nil {
		return fmt.Errorf("this kernel lacks %w", err)
	}
	here, err := findPlace(n.cfg)
	if err != nil {
		return err
	}
	n.place = here
	n.bpf, err = redirect.Open(redirect.Options{
		PinDir:      n.cfg.PinDir,
		CgroupRoot:  here.cgroup,
		ProbeCgroup: here.probes,
		HostCookie:  here.hostCookie,
	})
	if err != nil {
		return err
	}
	pins, err := redirect.PodPins(n.cfg.PinDir)
	for _, pin := range pins {
		n.found[pin.Cookie] = struct{}{} // the agent will say which of them are left
	}
	return err
}

// keepUp does what comes up from time to time.
func (n *Node) keepUp(ctx context.Context) {
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	look := time.NewTicker(successionInterval)
	defer look.Stop()
	said := "" // once, not every second
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			text := ""
			if err := n.reattach(); err != nil {
				text = err.Error()
			}
			if text != said && text != "" {
				n.log.Warn("capture upkeep", slog.String("err", text))
			}
			said = text
			continue
		case <-tick.C:
		}
		gone, err := n.bpf.Collect()
		n.events.collected.Add(uint64(gone))
		if err == nil && n.cfg.ProbeScope == ProbeKubelet {
			err = n.followKubelet()
		}
		if err != nil && !errors.Is(err, redirect.ErrReplaced) { // the newer process does it
			n.log.Warn("capture upkeep", slog.Any("err", err))
		}
	}
}

func (n *Node) followKubelet() error {
	dir, err := kubeletCgroup(n.place.cgroup)
	if err != nil {
		return err
	}
	return n.bpf.AttachProbe(dir)
}

// Add prepares a pod: decides its tier, makes its sockets and, in tier A, its
// rules, routes and steering program. Nothing is diverted before [Pod.Enable],
// unless an earlier process has left the pod captured. ns stays the caller's.
// The error says why the pod is refused.
func (n *Node) Add(ctx context.Context, info PodInfo, ns *netns.NS) (*Pod, error) {
	p, err := n.add(ctx, info, ns)
	if err != nil {
		return nil, fmt.Errorf("capture pod %s/%s: %w", info.Namespace, info.Name, err)
	}
	return p, nil
}

func (n *Node) add(ctx context.Context, info PodInfo, ns *netns.NS) (*Pod, error) {
	n.adding.RLock()
	defer n.adding.RUnlock()
	own, err := ns.Dup()
	if err != nil {
		return nil, err
	}
	p := newPod(n, info, own)
	tier, err := n.decide(ctx, p)
	if err == nil {
		p.tier = tier
		err = p.open(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, p.Abandon(ctx))
	}
	return p, nil
}

// decide chooses the tier by asking the kernel and the pod's namespace.
func (n *Node) decide(ctx context.Context, p *Pod) (Tier, error) {
	if n.cfg.Mode == IstioCNI {
		return TierIstioCNI, nil
	}
	if n.bpf != nil {
		if err := n.mayCapture(p); err != nil {
			return 0, err
		}
		enrolled, err := n.bpf.IsEnrolled(p.cookie)
		if err != nil {
			return 0, err
		}
		if enrolled || n.cfg.Mode == EBPF {
			return TierEBPF, nil
		}
	}
	if n.cfg.Mode == Auto {
		redirected, err := p.meetsRedirect(ctx)
		if err != nil {
			return 0, err
		}
		if redirected {
			return TierIstioCNI, nil
		}
	}
	if n.bpf == nil && n.cfg.Mode == EBPF {
		return 0, fmt.Errorf("eBPF capture is not possible: %w", n.reason)
	}
	if n.bpf == nil {
		return 0, fmt.Errorf("istio-cni has put no rules in the pod's namespace, and eBPF capture is not possible: %w", n.reason)
	}
	return TierEBPF, nil
}

// mayCapture refuses namespaces whose capture would take more than a pod's
// connections, and learns the pod's cookie.
func (n *Node) mayCapture(p *Pod) error {
	cookie, err := p.ns.Cookie()
	if err != nil {
		return fmt.Errorf("this kernel lacks network namespace cookies (Linux 5.14): %w", err)
	}
	p.cookie = cookie
	n.know(cookie)
	if p.ns.ID() == n.place.own {
		return errors.New("its network namespace is the proxy's own")
	}
	if cookie == n.place.hostCookie || p.ns.ID() == n.place.host {
		return errors.New("its network namespace is the host's")
	}
	return nil
}

// Counters are those of the programs, as they were counted since their maps
// were made, and those of user space since this process began.
func (n *Node) Counters() []Counter {
	all := []Counter{
		{"capture", "recaptured_delivery_reset", n.events.recaptured.Load()},
		{"capture", "rules_repaired", n.events.repaired.Load()},
		{"capture", "check_failed", n.events.unhealthy.Load()},
		{"capture", "dead_pods_collected", n.events.collected.Load()},
		{"capture", "stray_pods_released", n.events.strays.Load()},
		{"capture", "pods_taken_back", n.events.takenBack.Load()},
	}
	if n.bpf == nil {
		return all
	}
	counts, err := n.bpf.Counts()
	if err != nil {
		n.log.Warn("read capture counters", slog.Any("err", err))
	}
	return append(all, counters(counts)...)
}

func counters(counts []redirect.Count) []Counter {
	var out []Counter
	for _, c := range counts {
		out = append(out, Counter{Hook: c.Hook, Reason: c.Name, Value: c.Value})
	}
	return out
}

// Close lets go of the programs and leaves capture in force: connections that
// pods open from now on wait for the next process. Pods are released before.
// Later calls return what the first did.
func (n *Node) Close() error {
	n.close.Do(func() {
		n.stop()
		n.upkeep.Wait()
		if n.bpf != nil {
			n.err = n.bpf.Close()
		}
	})
	return n.err
}
