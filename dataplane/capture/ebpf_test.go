// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"strings"
	"testing"
)

func wants(t *testing.T, what, got string, err error, want string) {
	t.Helper()
	if err != nil || !strings.HasPrefix(got, want) {
		t.Errorf("%s: got %q, %v, want %q", what, got, err, want)
	}
}

func TestOutboundKnowsWhereItWasGoing(t *testing.T) {
	r := newRig(t)
	pod := r.pod("a")
	p := r.capture(pod)
	if p.Tier() != TierEBPF {
		t.Errorf("tier %v", p.Tier())
	}
	got, err := ask(pod.Host, "203.0.113.9:443", "x")
	wants(t, "IPv4", got, err, "outbound dst=203.0.113.9:443 peer="+pod.IPv4.String())
	got, err = ask(pod.Host, "[2001:db8:9::9]:443", "x")
	wants(t, "IPv6", got, err, "outbound dst=[2001:db8:9::9]:443 peer="+pod.IPv6.String())
}
