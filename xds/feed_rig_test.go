// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	sec "github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	pb "github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logLines) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// certificates records what it is asked for.
type certificates struct {
	mu    sync.Mutex
	asked []string
}

func (c *certificates) note(what string, id identity.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, what+" "+id.Principal())
}

func (c *certificates) Prefetch(id identity.ID) { c.note("prefetch", id) }
func (c *certificates) Forget(id identity.ID)   { c.note("forget", id) }

func (c *certificates) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

// feeding is a feed from a fake control plane.
type feeding struct {
	*Feed
	srv   *fakeistiod.Server
	store *mesh.Store
	view  mesh.View
	log   logLines
	certs certificates
	reg   *metrics.Registry
	types int // that are subscribed to as a whole
}

func feedFrom(t *testing.T, srv *fakeistiod.Server, change func(*Config)) *feeding {
	t.Helper()
	f := &feeding{srv: srv, store: mesh.NewStore(), reg: metrics.New("test")}
	f.view, f.types = f.store.View(), 2
	cfg := Config{
		Control:   control.Config{Address: srv.Address(), Roots: control.Roots{Inline: srv.RootPEM()}},
		Node:      Node{PodName: "z", PodNamespace: "istio-system", NodeName: "node1"},
		LocalNode: "node1",
	}
	if change != nil {
		change(&cfg)
	}
	if cfg.OnDemand {
		f.types = 1
	}
	f.Feed = Open(cfg, f.store, Hooks{Certificates: &f.certs, Metrics: NewMetrics(f.reg.Registerer())}, f.log.logger())
	t.Cleanup(func() { f.Close() })
	return f
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (f *feeding) ready(t *testing.T) {
	t.Helper()
	select {
	case <-f.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("never ready")
	}
	// The last answer is on its way: it would be taken for that to a later push.
	until(t, "the answers", func() bool { return f.answers() >= f.types })
}

// push sends one response and waits until it was answered; the answer's error
// is returned.
func (f *feeding) push(t *testing.T, resources []fakeistiod.Resource, removed ...string) string {
	t.Helper()
	before := f.answers()
	if len(removed) > 0 {
		f.srv.World.Remove(AddressType, removed...)
	}
	f.srv.World.Put(resources...)
	until(t, "an answer", func() bool { return f.answers() > before })
	all := f.srv.Requests()
	return all[len(all)-1].GetErrorDetail().GetMessage()
}

func (f *feeding) answers() int {
	n := 0
	for _, r := range f.srv.Requests() {
		if r.GetResponseNonce() != "" {
			n++
		}
	}
	return n
}

func simpleWorkload(uid, node string) *pb.Workload {
	return &pb.Workload{
		Uid: uid, Name: uid, Namespace: "ns", Node: node, Addresses: [][]byte{{10, 0, 0, uid[len(uid)-1]}},
		TunnelProtocol: pb.TunnelProtocol_HBONE, ServiceAccount: "sa-" + uid,
		Services: map[string]*pb.PortList{"ns/s.example": {Ports: []*pb.Port{{ServicePort: 80, TargetPort: 8080}}}},
	}
}

func simpleService() *pb.Service {
	return &pb.Service{Name: "s", Namespace: "ns", Hostname: "s.example", Ports: []*pb.Port{{ServicePort: 80, TargetPort: 8080}},
		Addresses: []*pb.NetworkAddress{{Address: []byte{10, 1, 0, 1}}}}
}

var serviceKey = mesh.NamespacedHostname{Namespace: "ns", Hostname: "s.example"}

func (f *feeding) endpoints() []string {
	var uids []string
	f.view.Endpoints(serviceKey, func(e mesh.Endpoint, _ *mesh.Workload) bool {
		uids = append(uids, e.WorkloadUID)
		return true
	})
	slices.Sort(uids)
	return uids
}

func simplePolicy(name string, scope sec.Scope, rules ...*sec.Rule) *sec.Authorization {
	return &sec.Authorization{Name: name, Namespace: "ns", Scope: scope, Rules: rules}
}
