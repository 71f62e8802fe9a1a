// SPDX-License-Identifier: Apache-2.0

package app

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
)

// TestWhatADedicatedProxyBinds follows the environment.
func TestWhatADedicatedProxyBinds(t *testing.T) {
	at := netip.MustParseAddrPort
	for name, tc := range map[string]struct {
		vars map[string]string
		dns  []netip.AddrPort // [::1] where the kernel has it
		mark uint32
		orig string
	}{
		"usually":         {nil, []netip.AddrPort{at("127.0.0.1:15053"), at("[::1]:15053")}, 0, "unset"},
		"another port":    {map[string]string{"ISTIO_META_DNS_PROXY_ADDR": "localhost:53"}, []netip.AddrPort{at("127.0.0.1:53"), at("[::1]:53")}, 0, "unset"},
		"without IPv6":    {map[string]string{"IPV6_ENABLED": "false"}, []netip.AddrPort{at("127.0.0.1:15053")}, 0, "unset"},
		"another address": {map[string]string{"ISTIO_META_DNS_PROXY_ADDR": "[::]:53"}, []netip.AddrPort{at("[::]:53")}, 0, "unset"},
		"no names":        {map[string]string{"ISTIO_META_DNS_CAPTURE": "false"}, nil, 0, "unset"},
		"a mark":          {map[string]string{"ISTIO_META_DNS_CAPTURE": "false", "PACKET_MARK": "7", "ENABLE_ORIG_SRC": "true"}, nil, 7, "true"},
	} {
		vars := map[string]string{"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/pod/sa"}
		maps.Copy(vars, tc.vars)
		c := load(t, vars)
		got := c.plain()
		if !c.IPv6Localhost {
			tc.dns = slices.DeleteFunc(tc.dns, func(a netip.AddrPort) bool { return a.Addr() == netip.IPv6Loopback() })
		}
		orig := "unset"
		if got.SpoofSource != nil {
			orig = map[bool]string{true: "true", false: "false"}[*got.SpoofSource]
		}
		if !slices.Equal(got.DNS, tc.dns) || got.Mark != tc.mark || orig != tc.orig || !got.Proxy || got.IPv6 != c.IPv6 {
			t.Errorf("%s: %+v (orig %s)", name, got, orig)
		}
	}
}
