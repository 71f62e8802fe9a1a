// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"strings"
	"testing"
)

func TestPoliciesApplyByScope(t *testing.T) {
	s := NewStore()
	v := s.View()
	w := pod("a", "", Healthy)
	w.AuthorizationPolicies = []string{"ns/selected", "other/also", "ns/missing"}
	list := func() string {
		found, missing := v.PoliciesFor(w)
		var names []string
		for _, p := range found {
			names = append(names, p.Key)
		}
		return strings.Join(names, " ") + " missing: " + strings.Join(missing, " ")
	}
	put := func(key string, scope PolicyScope) {
		ns, name, _ := strings.Cut(key, "/")
		apply(s, func(u *Update) { u.PutPolicy(key, &Policy{Name: name, Namespace: ns, Scope: scope}) })
	}
	put("ns/b", ScopeNamespace)
	put("ns/a", ScopeNamespace)
	put("other/x", ScopeNamespace)
	put("sys/global", ScopeGlobal)
	put("ns/selected", ScopeWorkloadSelector)
	put("ns/others", ScopeWorkloadSelector)
	put("other/also", ScopeWorkloadSelector)
	want(t, "all scopes", list(), "sys/global ns/a ns/b ns/selected other/also missing: ns/missing")

	put("ns/a", ScopeGlobal)
	put("ns/b", ScopeWorkloadSelector)
	put("ns/selected", ScopeNamespace)
	want(t, "after changes of scope, each once", list(), "ns/a sys/global ns/selected other/also missing: ns/missing")

	apply(s, func(u *Update) { u.RemovePolicy("ns/a"); u.RemovePolicy("ns/selected") })
	want(t, "after removals", list(), "sys/global other/also missing: ns/selected ns/missing")
}

// The names that were stored under are the xDS resources'; a policy may call
// itself otherwise.
func TestAPolicyIsKeyedByItsResourceName(t *testing.T) {
	s := NewStore()
	apply(s, func(u *Update) { u.PutPolicy("resource", &Policy{Name: "p", Namespace: "ns", Scope: ScopeNamespace}) })
	if s.View().Policy("ns/p") != nil || s.View().Policy("resource") == nil {
		t.Error("found under the wrong key")
	}
	found, _ := s.View().PoliciesFor(pod("a", "", Healthy))
	if len(found) != 1 || found[0].Key != "resource" {
		t.Errorf("applies: %v", found)
	}
}
