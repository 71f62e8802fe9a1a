// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/reason"
	"github.com/ztunnel-go/ztunnel/dataplane/route"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

const (
	// maxInquiries bounds how many connections of one pod, and how many
	// requests to it, may ask the control plane at once, so that a pod that
	// connects to addresses at random does not take all that a node may ask.
	maxInquiries = 256

	// labelWait is how long a connection waits to know who its peer is, which
	// only metrics and logs are told.
	labelWait = time.Second
)

// errTooManyInquiries refuses a connection beyond [maxInquiries].
var errTooManyInquiries = reason.New(reason.ControlPlaneBusy, "too many connections are waiting for the control plane")

// inquiries are who asks at the moment, by the direction of the connection:
// who floods a pod with requests must not cut it off.
type inquiries struct{ out, in atomic.Int64 }

// inquire has the control plane tell of a name, and returns when the store
// holds what it said. Without an answer nobody knows whether the name is one
// of the mesh, so that the connection must not go on as if it were not.
func (p *Proxy) inquire(ctx context.Context, asking *atomic.Int64, name string) error {
	defer during(&p.waits.answer)()
	defer asking.Add(-1)
	if asking.Add(1) > maxInquiries {
		return errTooManyInquiries
	}
	err := p.shared.Demand(ctx, name)
	switch {
	case err == nil:
		return nil
	case p.ctx.Err() != nil:
		return context.Cause(p.ctx)
	case errors.Is(err, context.DeadlineExceeded):
		p.expire("answer")
		return reason.Errorf(reason.ControlPlaneSilent, "timed out waiting for '%s' from xds", name)
	}
	return reason.Errorf(reason.ControlPlaneUnasked, "%w", err)
}

// ask decides, and looks hostnames up, and asks the control plane, as long as
// the decision needs it. All that is asked takes Config.WorkloadWait at most.
func (p *Proxy) ask(log *slog.Logger, q route.Query) route.Outcome {
	var ctx context.Context // there is one once there is something to ask
	for {
		out := route.Decide(p.view, q, p.balance.Choose)
		switch out.Kind {
		case route.Resolve:
			q = out.Again(p.resolve(log, q.Source, out.Resolve))
		case route.Learn:
			if ctx == nil {
				var done context.CancelFunc
				ctx, done = context.WithTimeout(p.ctx, p.cfg.WorkloadWait)
				defer done() // once: ctx stays
			}
			if err := p.inquire(ctx, &p.inquiries.out, out.Learn); err != nil {
				return route.Outcome{Kind: route.Refuse, Err: err}
			}
			q = out.Learned()
		default:
			if p.shared.Used != nil && len(out.Used) > 0 {
				p.shared.Used(out.Used)
			}
			return out
		}
	}
}

// resolve looks up the hostname of a workload (contract 3.8).
func (p *Proxy) resolve(log *slog.Logger, source *mesh.Workload, hostname string) ([]netip.Addr, error) {
	addrs, asked, err := p.shared.Lookup(p.ctx, hostname)
	p.shared.Reporter.HostLookup(source, hostname, asked)
	if err != nil {
		log.Warn("dns lookup failed", slog.String("hostname", hostname), slog.String("error", err.Error()))
	}
	return addrs, err
}

// maxInboundNames bounds how many names one request may make us ask for: the
// target, its waypoint, and a service of each namespace that has the pod.
const maxInboundNames = 8

// learnTarget asks for what a request's target has to be judged by.
func (p *Proxy) learnTarget(in route.Inbound, target route.Target) error {
	if p.shared.Demand == nil {
		return nil
	}
	ctx, done := context.WithTimeout(p.ctx, p.cfg.WorkloadWait)
	defer done()
	var asked []string
	for {
		names := slices.DeleteFunc(in.Unknown(p.view, target), func(name string) bool { return slices.Contains(asked, name) })
		if len(names) == 0 || len(asked) >= maxInboundNames {
			return nil
		}
		if err := p.inquire(ctx, &p.inquiries.in, names[0]); err != nil {
			return err
		}
		asked = append(asked, names[0])
	}
}

// peer is the workload with a client's address, or nil. It is for labels
// alone: addresses prove nothing.
func (p *Proxy) peer(ip netip.Addr) *mesh.Workload {
	at := mesh.NetworkAddr{Network: p.cfg.Network, Addr: ip.Unmap()}
	w := p.view.WorkloadAt(at)
	if w != nil || p.shared.Demand == nil {
		return w
	}
	ctx, done := context.WithTimeout(p.ctx, min(labelWait, p.cfg.WorkloadWait))
	defer done()
	if err := p.inquire(ctx, &p.inquiries.in, at.String()); err != nil {
		return nil
	}
	return p.view.WorkloadAt(at)
}
