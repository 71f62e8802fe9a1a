// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/internal/certs"
	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// What a connection may have to wait for before it can be judged. A wait holds
// no lock and no other connection, and has an end: Config.WorkloadWait.

// Waiting is how many connections of a pod wait at the moment, and for what.
type Waiting struct {
	Workload    int64 `json:"workload"`    // the pod's own workload, from the control plane
	Certificate int64 `json:"certificate"` // the first certificate of the pod's identity
	Policy      int64 `json:"policy"`      // a policy that the workload names
	Answer      int64 `json:"answer"`      // what the control plane knows of a name, on demand
	// Expired is how many have waited in vain since the pod was enrolled.
	Expired int64 `json:"expired"`
}

// waits keeps [Waiting].
type waits struct{ workload, certificate, policy, answer, expired atomic.Int64 }

// Waiting tells what connections wait for.
func (p *Proxy) Waiting() Waiting {
	w := &p.waits
	return Waiting{w.workload.Load(), w.certificate.Load(), w.policy.Load(), w.answer.Load(), w.expired.Load()}
}

// during counts one who waits until the function that it returns is called.
func during(n *atomic.Int64) (over func()) {
	n.Add(1)
	return func() { n.Add(-1) }
}

// expire counts a wait that was in vain.
func (p *Proxy) expire(what string) {
	p.waits.expired.Add(1)
	p.shared.Metrics.expired(what)
}

// workload is the pod's own. If it is not there yet it may come within
// Config.WorkloadWait (contract 3.1 step 3); the error says that it did not,
// or why there was no time.
func (p *Proxy) workload(log *slog.Logger) (*mesh.Workload, error) {
	if w := p.pod.in(p.shared.Store, p.cfg.Node); w != nil {
		return w, nil
	}
	defer during(&p.waits.workload)()
	ctx, done := context.WithTimeout(p.ctx, p.cfg.WorkloadWait)
	defer done()
	if w := p.shared.AwaitWorkload(ctx, p.cfg, p.pod); w != nil {
		return w, nil
	}
	if p.ctx.Err() != nil {
		return nil, context.Cause(p.ctx)
	}
	p.expire("workload")
	log.Warn(fmt.Sprintf("timed out waiting for workload '%s' from xds", p.pod.label()))
	return nil, &unknownWorkloadError{p.pod}
}

// askAgain is how long a pod waits before it asks for its own workload once
// more: the control plane may have heard of the pod after us.
const askAgain = time.Second

// AwaitWorkload is [WaitWorkload] for whoever uses s, with the Node and
// ClusterID of cfg. In on-demand mode the control plane is asked for the
// workload, by the name that istiod gives it; it may come unasked all the same.
func (s *Shared) AwaitWorkload(ctx context.Context, cfg Config, pod Pod) *mesh.Workload {
	if s.Demand == nil {
		return WaitWorkload(ctx, s.Store, cfg.Node, pod)
	}
	ctx, done := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() { // ends with ctx
		for ctx.Err() == nil {
			_ = s.Demand(ctx, pod.workloadUID(cfg.ClusterID)) // what came of it is in the store
			select {
			case <-time.After(askAgain):
			case <-ctx.Done():
			}
		}
	})
	defer asking.Wait()
	defer done()
	return WaitWorkload(ctx, s.Store, cfg.Node, pod)
}

// An unknownWorkloadError is a pod whose workload the control plane has not
// sent.
type unknownWorkloadError struct{ pod Pod }

func (e *unknownWorkloadError) Error() string {
	return "failed to fetch information about local workload: " + e.pod.label()
}

// Why is the error's reason.
func (e *unknownWorkloadError) Why() reason.Reason { return reason.WorkloadUnknown }

// WaitWorkload waits, until ctx ends, for the workload that belongs to pod
// among those of node; nil says that it did not come. An empty node means any.
func WaitWorkload(ctx context.Context, store *mesh.Store, node string, pod Pod) *mesh.Workload {
	for {
		changed, forget := store.WorkloadChanged(pod.Namespace, pod.Name)
		w := pod.in(store, node)
		if w == nil {
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
		forget()
		if w != nil || ctx.Err() != nil {
			return w
		}
	}
}

// in looks for the pod's workload.
func (p Pod) in(store *mesh.Store, node string) *mesh.Workload {
	return store.View().LocalWorkload(node, p.Name, p.Namespace, p.ServiceAccount)
}

// label is how logs and errors name the pod: <service account>.<namespace> (<name>).
func (p Pod) label() string {
	return fmt.Sprintf("%s.%s (%s)", p.ServiceAccount, p.Namespace, p.Name)
}

// workloadUID is what istiod calls the workload of a pod of its cluster.
func (p Pod) workloadUID(cluster string) string {
	return cluster + "//Pod/" + p.Namespace + "/" + p.Name
}

// certificate is that of an identity of ours. The first one may take
// Config.WorkloadWait to come.
func (p *Proxy) certificate(ctx context.Context, id identity.ID) (*certs.Bundle, error) {
	defer during(&p.waits.certificate)()
	late := reason.Errorf(reason.CertificateLate, "timed out waiting for the certificate of %s", id)
	ctx, done := context.WithTimeoutCause(ctx, p.cfg.WorkloadWait, late)
	defer done()
	bundle, err := p.shared.Certs.Certificate(ctx, id, certs.RealTime)
	if err == late { //nolint:errorlint // this very one
		p.expire("certificate")
	}
	return bundle, err
}

// An absence list knows since when policies that the pod's workload names are
// missing, so that each is waited for once and not by every connection.
type absences struct {
	mu    sync.Mutex
	since map[string]time.Time // guarded by mu; no more than the workload names
}

// until is when waiting for the missing ends. What is not missing is forgotten.
func (a *absences) until(missing []string, now time.Time, wait time.Duration) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	end := now
	next := make(map[string]time.Time, len(missing))
	for _, key := range missing {
		since, known := a.since[key]
		if !known {
			since = now
		}
		next[key] = since
		if e := since.Add(wait); e.After(end) {
			end = e
		}
	}
	a.since = next
	return end
}

// awaitPolicies waits for policies that a workload names and nobody has told
// us of: to judge without them may be to let in whom they keep out. It returns
// the workload as it is then, and has waited long enough when it returns it
// with some missing; they are ignored, as by the reference (contract 5.5).
func (p *Proxy) awaitPolicies(ctx context.Context, w *mesh.Workload) (*mesh.Workload, error) {
	if !p.lacksPolicies(w) {
		return w, nil
	}
	defer during(&p.waits.policy)()
	for {
		policies := p.shared.Store.PoliciesChanged()
		self, forget := p.shared.Store.WorkloadChanged(w.Namespace, w.Name)
		if now := p.view.Workload(w.UID); now != nil {
			w = now
		}
		missing := p.missingPolicies(w)
		wait := time.Until(p.absent.until(missing, time.Now(), p.cfg.WorkloadWait))
		if len(missing) == 0 || wait <= 0 {
			forget()
			p.shared.Metrics.unknownPolicies(len(missing))
			return w, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-policies:
		case <-self:
		case <-timer.C:
			p.expire("policy")
		case <-ctx.Done():
		}
		timer.Stop()
		forget()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

func (p *Proxy) lacksPolicies(w *mesh.Workload) bool {
	return slices.ContainsFunc(w.AuthorizationPolicies, func(key string) bool { return p.view.Policy(key) == nil })
}

func (p *Proxy) missingPolicies(w *mesh.Workload) []string {
	view, missing := p.view.Pin(), []string(nil)
	for _, key := range w.AuthorizationPolicies {
		if view.Policy(key) == nil {
			missing = append(missing, key)
		}
	}
	return missing
}
