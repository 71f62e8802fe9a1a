// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"bytes"
	"context"
	"fmt"
	"net/http"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
	"github.com/ztunnel-go/ztunnel/xds/pb/workloadpb"
)

// push has the control plane serve a state instead of the one before, and marks
// it: a policy and a workload, in a namespace where nobody is, whose names say
// which state has been taken.
func (s *Suite) push(state *State) error {
	want, err := state.resources(s.expandPlaces)
	if err != nil {
		return err
	}
	var changed []fakeistiod.Resource
	for name, r := range s.pushed {
		if _, ok := want[name]; !ok {
			s.control.World.Remove(r.Type, name)
		}
	}
	for name, r := range want {
		if old, ok := s.pushed[name]; !ok || old.Type != r.Type || !bytes.Equal(old.Payload, r.Payload) {
			changed = append(changed, r)
		}
	}
	s.pushed = want
	if s.states > 0 {
		s.control.World.Remove(fakeistiod.AuthorizationType, "conform/"+s.mark())
		s.control.World.Remove(fakeistiod.AddressType, s.mark())
	}
	s.states++
	// Without rules it denies nothing, and its namespace has no pod.
	seal := fakeistiod.Policy(&securitypb.Authorization{
		Name: s.mark(), Namespace: "conform", Scope: securitypb.Scope_NAMESPACE, Action: securitypb.Action_DENY,
	})
	nobody := fakeistiod.Workload(&workloadpb.Workload{Uid: s.mark(), Name: s.mark(), Namespace: "conform"})
	s.control.World.Put(append(changed, seal, nobody)...)
	return nil
}

// mark is the name of the state that is pushed.
func (s *Suite) mark() string { return fmt.Sprintf("conform-state-%d", s.states) }

// apply pushes a state and waits until all proxies have taken it.
func (g *group) apply(ctx context.Context, state *State) error {
	if err := g.suite.push(state); err != nil {
		return err
	}
	uid := fmt.Sprintf(`"uid": "%s"`, g.suite.mark())
	name := fmt.Sprintf(`"name": "%s"`, g.suite.mark())
	for node := range g.running {
		err := eventually(ctx, func() error {
			a, err := g.ask(ctx, request{place: node, method: http.MethodGet, page: "15000/config_dump"})
			if err != nil {
				return err
			}
			if !bytes.Contains(a.body, []byte(uid)) || bytes.Count(a.body, []byte(name)) != 2 {
				return fmt.Errorf("config_dump of %s does not have the state that was pushed", node)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ready waits until a node says that it is.
func (g *group) ready(ctx context.Context, node string) error {
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	proxy := g.running[node]
	go func() { // ends with ctx or the proxy
		defer close(ended)
		if _, err := proxy.Wait(ctx); err == nil {
			cancel()
		}
	}()
	defer func() {
		cancel()
		<-ended
	}()
	return eventually(ctx, func() error {
		a, err := g.ask(ctx, request{place: node, method: http.MethodGet, page: "15021/healthz/ready"})
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("%d %q", a.status, a.body)
		}
		return err
	})
}
