// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ztunnel-go/ztunnel/test/fakeistiod"
	"github.com/ztunnel-go/ztunnel/test/rig"
	"github.com/ztunnel-go/ztunnel/xds/pb/securitypb"
)

const (
	typeAddress = fakeistiod.AddressType
	typePolicy  = fakeistiod.AuthorizationType
)

func strconvQuote(s string) string { return strconv.Quote(s) }

// A rule is a policy with what it ought to do.
type rule struct {
	what   string
	policy *securitypb.Authorization
	denies func(e *entry) bool
}

// flip puts a policy in force for a while.
func (s *soak) flip(ctx context.Context, r *rand.Rand) error {
	one := s.rules(r)[r.IntN(4)]
	p := one.policy
	p.Name, p.Namespace, p.Scope = "soak-"+strconv.FormatUint(r.Uint64(), 36), namespace, securitypb.Scope_NAMESPACE
	inside := func(e *entry) bool { // which policies are asked about
		return e.target != s.far && !e.plan.dns && one.denies(e)
	}
	ev := s.chronicle.begin(&event{what: "policy: " + one.what, denies: inside,
		hits: func(_ *event, e *entry, _ time.Time) bool { return inside(e) }})
	s.istiod.World.Put(fakeistiod.Policy(p))
	if err := s.eachKnows(ctx, strconvQuote(p.GetName()), true); err != nil {
		return err
	}
	s.chronicle.mark(&ev.sure, time.Now())
	sleep(ctx, time.Duration(1000+r.IntN(3000))*time.Millisecond)
	s.chronicle.mark(&ev.ended, time.Now())
	s.istiod.World.Remove(typePolicy, namespace+"/"+p.GetName())
	if err := s.eachKnows(ctx, strconvQuote(p.GetName()), false); err != nil {
		return err
	}
	s.chronicle.end(ev)
	return nil
}

// rules are those that are flipped.
func (s *soak) rules(r *rand.Rand) []rule {
	who := s.pick(r)
	name := func(p *pod) *securitypb.StringMatch {
		return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: rig.Principal(namespace, p.name)}}
	}
	anybody := &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Presence{Presence: &emptypb.Empty{}}}
	one := func(action securitypb.Action, m *securitypb.Match) *securitypb.Authorization {
		return &securitypb.Authorization{Action: action, Rules: []*securitypb.Rule{{Clauses: []*securitypb.Clause{{Matches: []*securitypb.Match{m}}}}}}
	}
	return []rule{
		{"deny " + who.name, one(securitypb.Action_DENY, &securitypb.Match{Principals: []*securitypb.StringMatch{name(who)}}),
			func(e *entry) bool { return e.from == who }},
		{"allow all but " + who.name, one(securitypb.Action_ALLOW, &securitypb.Match{Principals: []*securitypb.StringMatch{anybody}, NotPrincipals: []*securitypb.StringMatch{name(who)}}),
			func(e *entry) bool { return e.from == who || e.from == s.stranger }},
		{"STRICT", one(securitypb.Action_DENY, &securitypb.Match{NotPrincipals: []*securitypb.StringMatch{anybody}}),
			func(e *entry) bool { return e.from == s.stranger }},
		{"deny a port", one(securitypb.Action_DENY, &securitypb.Match{DestinationPorts: []uint32{portBarred}}),
			func(e *entry) bool { return e.port == portBarred }},
	}
}
