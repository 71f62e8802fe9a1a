// SPDX-License-Identifier: Apache-2.0

package reason

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEveryReasonHasANameAFlagAndSentences(t *testing.T) {
	names := map[string]Reason{}
	flags := []Flag{FlagNone, FlagDeny, FlagConnect, FlagH2HandshakeFailure, FlagNetworkPolicy, FlagIdentityError, FlagCertificateRevoked}
	for _, r := range All() {
		if other, taken := names[r.String()]; taken {
			t.Errorf("%d and %d are both %s", r, other, r)
		}
		names[r.String()] = r
		if !regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`).MatchString(r.String()) {
			t.Errorf("%d has the name %q", r, r)
		}
		if !slices.Contains(flags, r.Flag()) {
			t.Errorf("%s has the flag %q", r, r.Flag())
		}
		for _, s := range []string{r.Means(), r.Look()} {
			if s != "" && !strings.HasSuffix(s, ".") || strings.Contains(s, "|") {
				t.Errorf("%s: %q is no sentence for a table", r, s)
			}
		}
		if r.Means() == "" {
			t.Errorf("%s means nothing", r)
		}
	}
}

func TestAReasonThatIsNoneIsUnknown(t *testing.T) {
	if r := Reason(200); r.String() != "unknown" || r.Flag() != FlagConnect {
		t.Errorf("%s %s", r, r.Flag())
	}
}

func TestAnErrorKnowsItsReason(t *testing.T) {
	inner := New(NoRoute, "no way")
	outer := Errorf(NameUnresolved, "x: %w", inner)
	for _, tc := range []struct {
		err  error
		why  Reason
		ok   bool
		text string
	}{
		{inner, NoRoute, true, "no way"},
		{fmt.Errorf("y: %w", inner), NoRoute, true, "y: no way"},
		{outer, NameUnresolved, true, "x: no way"},
		{errors.Join(io.EOF, inner), NoRoute, true, "EOF\nno way"},
		{io.EOF, Unknown, false, "EOF"},
		{nil, Unknown, false, ""},
	} {
		why, ok := Of(tc.err)
		if why != tc.why || ok != tc.ok || tc.err != nil && tc.err.Error() != tc.text {
			t.Errorf("%v: %v %v", tc.err, why, ok)
		}
	}
	if !errors.Is(outer, inner) {
		t.Error("what an error wraps is lost")
	}
}
