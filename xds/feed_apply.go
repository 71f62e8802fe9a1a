// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/xds/delta"
	"github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// A rejections collects what a response is refused for. What could be read
// but not used comes before what could not be read (contract 8.3).
type rejections struct{ unusable, unreadable []delta.Rejection }

func (r *rejections) all() []delta.Rejection { return append(r.unusable, r.unreadable...) }

func (r *rejections) use(name string, err error, held bool) {
	r.unusable = append(r.unusable, delta.Rejection{Name: name, Reason: err.Error(), Held: held})
}

func (r *rejections) read(name string, err error) {
	r.unreadable = append(r.unreadable, delta.Rejection{Name: name, Reason: err.Error()})
}

// addresses applies a response of workloads and services (contract 8.8).
// Services come first, so that the memberships that workloads bring are judged
// by the health policies of this response and not of the one before; then
// workloads; then what is gone.
func (f *Feed) addresses(updates []delta.Resource, removed []string) []delta.Rejection {
	var rejected rejections
	var workloads []*delta.Resource
	services := make([]*mesh.Service, 0, applyBatch)
	apply := func() {
		f.applyServices(services)
		services = services[:0]
	}
	var msg workloadpb.Address
	for i := range updates {
		res := &updates[i]
		if holdsWorkload(res) {
			workloads = append(workloads, res) // read in its turn, and not kept twice
			continue
		}
		switch s, err := f.readService(res, &msg, &rejected); {
		case err != nil:
			rejected.use(res.Name, err, false)
		case s != nil:
			if services = append(services, s); len(services) == applyBatch {
				apply()
			}
		}
	}
	apply()
	f.putWorkloads(workloads, &msg, &rejected)
	f.removeAddresses(removed)
	f.prefetch.settle(f.store.View())
	if f.idle != nil {
		f.attend(updates, removed)
	}
	return rejected.all()
}

// attend keeps account of what we hold, where that is not all there is.
func (f *Feed) attend(updates []delta.Resource, removed []string) {
	now := time.Now()
	for i := range updates {
		f.idle.arrived(updates[i].Name, now)
	}
	for _, name := range removed {
		f.idle.gone(name)
	}
	f.letGo(now)
}

// holdsWorkload looks at the first tag alone: that of the oneof's first
// member. A message that is more complicated is sorted out when it is read.
func holdsWorkload(res *delta.Resource) bool {
	const workloadTag = 1<<3 | 2
	return len(res.Payload) > 0 && res.Payload[0] == workloadTag
}

// readService reads what looks like a service. If it is a workload after all,
// it is applied on the spot.
func (f *Feed) readService(res *delta.Resource, msg *workloadpb.Address, rejected *rejections) (*mesh.Service, error) {
	if err := decode(res, msg); err != nil {
		rejected.read(res.Name, err)
		return nil, nil
	}
	switch a := msg.GetType().(type) {
	case *workloadpb.Address_Service:
		return f.translate.service(a.Service)
	case *workloadpb.Address_Workload:
		w, err := f.translate.workload(a.Workload)
		if err == nil {
			f.applyWorkloads([]*mesh.Workload{w})
		}
		return nil, err
	default:
		return nil, errors.New("unknown address type")
	}
}

// putWorkloads reads and applies in turns, so that only one batch exists both
// as message and as value.
func (f *Feed) putWorkloads(list []*delta.Resource, msg *workloadpb.Address, rejected *rejections) {
	batch := make([]*mesh.Workload, 0, applyBatch)
	for _, res := range list {
		if err := decode(res, msg); err != nil {
			rejected.read(res.Name, err)
			continue
		}
		a, ok := msg.GetType().(*workloadpb.Address_Workload)
		if !ok { // a service follows the workload in the message: the last one counts
			s, err := f.translate.service(msg.GetService())
			if err != nil {
				rejected.use(res.Name, err, false)
				continue
			}
			f.applyServices([]*mesh.Service{s})
			continue
		}
		w, err := f.translate.workload(a.Workload)
		if err != nil {
			rejected.use(res.Name, err, false)
			continue
		}
		if w.UID == res.Name { // it nearly always is: one string for both
			w.UID = res.Name
		}
		if batch = append(batch, w); len(batch) == applyBatch {
			f.applyWorkloads(batch)
			batch = batch[:0]
		}
	}
	f.applyWorkloads(batch)
}

// applyServices puts services, but not those that are there already: a control
// plane tells everything again on each new stream, and an update should cost
// what changed.
func (f *Feed) applyServices(batch []*mesh.Service) {
	v := f.store.View()
	batch = slices.DeleteFunc(batch, func(s *mesh.Service) bool {
		old := v.Service(s.Key())
		return old != nil && reflect.DeepEqual(old, s)
	})
	inBatches(f.store, batch, func(u *mesh.Update, s *mesh.Service) { u.PutService(s) })
}

// applyWorkloads does the same for workloads. An unhealthy one is always put:
// whether services take it depends on what they have become since.
func (f *Feed) applyWorkloads(batch []*mesh.Workload) {
	for _, w := range batch {
		f.prefetch.wanted(w)
	}
	v := f.store.View()
	batch = slices.DeleteFunc(batch, func(w *mesh.Workload) bool {
		old := v.Workload(w.UID)
		return old != nil && w.Status == mesh.Healthy && reflect.DeepEqual(old, w)
	})
	inBatches(f.store, batch, func(u *mesh.Update, w *mesh.Workload) {
		f.prefetch.replaced(u.Workload(w.UID), w)
		u.PutWorkload(w)
	})
}

// removeAddresses takes each name for the uid of a workload, and else for the
// name of a service (contract 8.8). Nothing says which it is.
func (f *Feed) removeAddresses(removed []string) {
	var warnings []string
	inBatches(f.store, removed, func(u *mesh.Update, name string) {
		if w := u.Workload(name); w != nil {
			u.RemoveWorkload(name)
			f.prefetch.replaced(w, nil)
			return
		}
		ns, host, ok := strings.Cut(name, "/")
		switch {
		case !ok:
			warnings = append(warnings, fmt.Sprintf("tried to remove %q, which is neither a workload nor of the form namespace/hostname", name))
		case strings.Contains(host, "/"): // the uid of a workload that we never had
		case !u.RemoveService(mesh.NamespacedHostname{Namespace: ns, Hostname: host}):
			warnings = append(warnings, "tried to remove service, but it was not found: "+name)
		}
	})
	for _, text := range warnings { // not while the store is locked
		f.logger.Warn(text)
	}
}

// A keyedPolicy is a policy under its resource name; nil: it is gone.
type keyedPolicy struct {
	key    string
	policy *mesh.Policy
}

// authorizations applies a response of policies in one step, so that nobody is
// judged by half of a change.
func (f *Feed) authorizations(updates []delta.Resource, removed []string) []delta.Rejection {
	var rejected rejections
	changes := make([]keyedPolicy, 0, len(updates)+len(removed))
	for i := range updates {
		res := &updates[i]
		f.logger.Info("handling RBAC update " + res.Name)
		var msg securitypb.Authorization
		if err := decode(res, &msg); err != nil {
			rejected.read(res.Name, err)
			continue
		}
		p, err := f.translate.policy(&msg)
		if err != nil {
			rejected.use(res.Name, err, p != nil)
		}
		if p != nil {
			changes = append(changes, keyedPolicy{res.Name, p})
		}
	}
	for _, name := range removed {
		f.logger.Info("handling RBAC delete " + name)
		changes = append(changes, keyedPolicy{name, nil})
	}
	f.store.Apply(func(u *mesh.Update) {
		for _, c := range changes {
			if c.policy != nil {
				u.PutPolicy(c.key, c.policy)
			} else {
				u.RemovePolicy(c.key)
			}
		}
	})
	return rejected.all()
}
