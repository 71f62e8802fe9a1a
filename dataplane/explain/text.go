// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"strings"
)

// Text is the answer for people, in lines.
func (a Answer) Text() string {
	var b strings.Builder
	b.WriteString("from   " + a.From.text() + "\n")
	b.WriteString("to     " + a.To.text() + "\n\nroute\n")
	for _, step := range a.Route.Steps {
		b.WriteString("  " + step + "\n")
	}
	for _, w := range a.Route.Warnings {
		b.WriteString("  warning: " + w + "\n")
	}
	b.WriteString("  => " + a.Route.text() + "\n")
	b.WriteString("\npolicy\n")
	if a.PolicyNote != "" {
		b.WriteString("  " + a.PolicyNote + "\n")
	}
	if a.Policy != nil {
		a.Policy.text(&b)
	}
	if a.Back != nil {
		b.WriteString("\npolicy, if the server connected back to the client\n")
		a.Back.text(&b)
	}
	if a.Allowed {
		b.WriteString("\nThe connection is carried.\n")
	} else {
		b.WriteString("\nThe connection is NOT carried.\n")
	}
	return b.String()
}

func (e End) text() string {
	parts := []string{e.Asked}
	if e.Service != "" {
		parts = append(parts, "service "+e.Service)
	}
	if e.Workload != "" {
		parts = append(parts, "workload "+e.Workload)
	}
	if e.Service == "" && e.Workload == "" {
		parts = append(parts, "nobody in the mesh")
	}
	if e.Addr.Port() != 0 {
		parts = append(parts, e.Addr.String())
	} else {
		parts = append(parts, e.Addr.Addr().String())
	}
	for _, more := range []struct{ name, value string }{{"", e.Identity}, {"node ", e.Node}, {"", e.Note}} {
		if more.value != "" {
			parts = append(parts, more.name+more.value)
		}
	}
	return strings.Join(parts, ", ")
}

func (r Route) text() string {
	switch {
	case r.Error != "":
		text := fmt.Sprintf("%s: %s (%s)\n     %s", r.Outcome, r.Error, r.Reason, r.Means)
		if r.Look != "" {
			text += "\n     Look at: " + r.Look
		}
		return text
	case r.Dial == "":
		return r.Outcome
	}
	text := r.Outcome + " to " + r.Dial
	if r.Authority != "" {
		text += ", asking for " + r.Authority
	}
	if len(r.Expect) > 0 {
		text += ", expecting " + strings.Join(r.Expect, " or ")
	}
	return text
}

func (v Verdict) text(b *strings.Builder) {
	as := v.As
	if as == "" {
		as = "nobody (in plaintext)"
	}
	fmt.Fprintf(b, "  At %s, for %v to %v as %s.\n", v.At, v.From, v.To, as)
	if len(v.Policies) == 0 {
		b.WriteString("  No policy applies to it.\n")
	} else {
		fmt.Fprintf(b, "  Policies that apply to it: %s.\n", strings.Join(v.Policies, ", "))
	}
	for _, p := range v.Unknown {
		fmt.Fprintf(b, "  It names the policy %s, which is not known.\n", p)
	}
	for _, d := range v.DryRun {
		fmt.Fprintf(b, "  %s.\n", d)
	}
	answer := "allowed"
	if !v.Allowed {
		answer = "DENIED"
	}
	fmt.Fprintf(b, "  => %s: %s", answer, v.Why)
	if v.Decided != "" && !strings.Contains(v.Why, v.Decided) {
		fmt.Fprintf(b, " (%s)", v.Decided)
	}
	b.WriteString("\n")
}
