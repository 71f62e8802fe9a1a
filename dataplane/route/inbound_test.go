// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

func TestParseTarget(t *testing.T) {
	for _, tc := range []struct{ in, addr, host string }{
		{"1.2.3.4:80", "1.2.3.4:80", ""},
		{"[2001:db8::1]:80", "[2001:db8::1]:80", ""},
		{"[::ffff:1.2.3.4]:80", "1.2.3.4:80", ""},
		{"host.name:80", "", "host.name"},
		{"a_b-c.svc:65535", "", "a_b-c.svc"},
		{"1.2.3:80", "", "1.2.3"}, // not an address, so a name
		{"", "", ""}, {"1.2.3.4", "", ""}, {"host", "", ""}, {"host:", "", ""}, {":80", "", ""}, {"host:65536", "", ""},
		{"host:-1", "", ""}, {"host:+1", "", ""}, {"2001:db8::1:80", "", ""}, {"[2001:db8::1]", "", ""}, {"[fe80::1%lo]:80", "", ""},
		{"user@host:80", "", ""}, {"ho st:80", "", ""}, {"host/x:80", "", ""}, {"[host]:80", "", ""}, {"h\n:80", "", ""}, {"höst:80", "", ""},
		{"host:80:80", "", ""}, {"http://host:80", "", ""},
	} {
		got, err := ParseTarget(tc.in)
		if (err == nil) != (tc.addr != "" || tc.host != "") {
			t.Errorf("%q: error %v", tc.in, err)
			continue
		}
		if err != nil {
			if want := "no valid authority pseudo header: " + tc.in; err.Error() != want {
				t.Errorf("%q: error %q", tc.in, err)
			}
			continue
		}
		if tc.addr != "" && (got.Addr.String() != tc.addr || got.Port != got.Addr.Port() || got.Hostname != "") || got.Hostname != tc.host {
			t.Errorf("%q: %+v", tc.in, got)
		}
	}
}

func TestEveryProperPrefixOfATarget(t *testing.T) {
	for _, full := range []string{"10.20.30.40:15008", "[2001:db8::1]:80", "host.name:8080"} {
		for i := range full {
			if got, err := ParseTarget(full[:i]); err == nil && got.String() != full[:i] {
				t.Errorf("%q became %v", full[:i], got)
			}
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"1.2.3.4:80", "[::1]:80", "host:80", "[::ffff:1.2.3.4]:1", ":", "a:b:c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			return
		}
		if again, err := ParseTarget(got.String()); err != nil || again != got {
			t.Fatalf("%q: %+v, again %+v, %v", s, got, again, err)
		}
	})
}

// The cases of contract 5.3 and 5.4: a pod, a waypoint, and a waypoint behind
// an application tunnel, each asked for itself and for those it stands for.
func TestInboundRequests(t *testing.T) {
	pod := hbone("pod", "10.0.0.2 fd00::2", in("svc", 80, 9090), in("other.svc"))
	waypoint := hbone("waypoint", "10.0.5.1", in("wp.svc", 15008, 15008))
	proxied := hbone("proxied", "10.0.5.2 fd00:5::2", withTunnel(mesh.TunnelProxy, 15088), in("proxied.svc"))
	bare := hbone("bare", "10.0.5.3", withTunnel(mesh.TunnelNone, 15090))
	portless := hbone("portless", "10.0.5.4", withTunnel(mesh.TunnelProxy, 0))
	hidden := service("hidden.svc", "10.1.0.9", []uint16{80, 80}, func(s *mesh.Service) { s.Namespace, s.Visibility = "away", mesh.NamespaceOnly })
	v := build(pod, waypoint, proxied, bare, portless, hidden,
		service("svc", "10.1.0.1", []uint16{80, 8080, 443, 0, 81, 8081, 15, 15008}),
		service("other.svc", "10.1.0.2", []uint16{90, 0}),
		service("wp.svc", "10.1.5.1", []uint16{15008, 15008}),
		service("proxied.svc", "remote/10.1.5.3 fd01::5 10.1.5.2", []uint16{80, 8080}),
		service("headless.svc", "", []uint16{80, 8080}),
		hbone("podByAddr", "10.0.1.1", behind("/10.0.5.1:15008")),
		hbone("podByHost", "10.0.1.2", behind("wp.svc:15008")),
		hbone("podByVIP", "10.0.1.3", behind("/10.1.5.1:15008")),
		hbone("podByLost", "10.0.1.4", behind("wp.lost:15008")),
		hbone("podByOther", "10.0.1.5", behind("/10.0.0.2:15008")),
		service("viaAddr.svc", "10.1.1.1", []uint16{80, 80}, via("/10.0.5.1:15008")),
		service("viaHost.svc", "10.1.1.2", []uint16{80, 80}, via("wp.svc:15008")),
		service("private.svc", "10.1.1.3", []uint16{80, 80}, via("wp.svc:15008"), func(s *mesh.Service) { s.Namespace, s.Visibility = "away", mesh.NamespaceOnly }),
		service("weighted.svc", "10.1.1.4", []uint16{80, 80}, func(s *mesh.Service) {
			s.WeightedWaypoints = []mesh.WeightedWaypoint{{Destination: *gatewayTo("wp.svc:15008"), Weight: 1}}
		}),
	)
	for _, tc := range []struct {
		name   string
		local  *mesh.Workload
		target string
		want   string // the upstream, and after a space the address to announce
		err    string
	}{
		{"itself", pod, "10.0.0.2:80", "10.0.0.2:80", ""},
		{"itself by another of its addresses is not this connection's", pod, "[fd00::2]:80", "", "ip mismatch: 10.0.0.2 != fd00::2"},
		{"somebody else", pod, "10.0.9.9:80", "", "ip mismatch: 10.0.0.2 != 10.0.9.9"},
		{"somebody behind another waypoint", pod, "10.0.1.1:80", "", "ip mismatch: 10.0.0.2 != 10.0.1.1"},
		{"an own port of the proxy", pod, "10.0.0.2:15008", "", "attempted recursive call to ourselves"},
		{"a name, by the endpoint's port", pod, "svc:80", "10.0.0.2:9090", ""},
		{"a name, by the service's port", pod, "svc:81", "10.0.0.2:8081", ""},
		{"a name whose port is nobody's", pod, "svc:443", "", "requested service svc:443 found, but cannot resolve port"},
		{"a name without the port", pod, "svc:1", "", "requested service svc:1 found, but cannot resolve port"},
		{"a name that leads to the proxy's port", pod, "svc:15", "", "attempted recursive call to ourselves"},
		{"an unknown name", pod, "lost.svc:80", "", "no service or workload for hostname: lost.svc"},
		{"a name for others' eyes", pod, "hidden.svc:80", "", "no service or workload for hostname: hidden.svc"},

		{"waypoint: a pod, by address", waypoint, "10.0.1.1:80", "10.0.5.1:80", ""},
		{"waypoint: a pod, by hostname", waypoint, "10.0.1.2:80", "10.0.5.1:80", ""},
		{"waypoint: a pod, by VIP", waypoint, "10.0.1.3:80", "10.0.5.1:80", ""},
		{"waypoint: a pod of another waypoint", waypoint, "10.0.1.5:80", "", "ip mismatch: 10.0.5.1 != 10.0.1.5"},
		{"waypoint: a pod of a lost waypoint", waypoint, "10.0.1.4:80", "", "ip mismatch: 10.0.5.1 != 10.0.1.4"},
		{"waypoint: a service, by address", waypoint, "10.1.1.1:80", "10.0.5.1:80", ""},
		{"waypoint: a service, by hostname", waypoint, "10.1.1.2:80", "10.0.5.1:80", ""},
		{"waypoint: a service that not all may see", waypoint, "10.1.1.3:80", "10.0.5.1:80", ""},
		{"waypoint: weights have no say", waypoint, "10.1.1.4:80", "", "ip mismatch: 10.0.5.1 != 10.1.1.4"},
		{"waypoint: a service without one", waypoint, "10.1.0.1:80", "", "ip mismatch: 10.0.5.1 != 10.1.0.1"},

		{"tunnel: anything", proxied, "10.0.9.9:80", "10.0.5.2:15088 10.0.9.9:80", ""},
		{"tunnel: itself", proxied, "10.0.5.2:80", "10.0.5.2:15088 10.0.5.2:80", ""},
		{"tunnel: in IPv6", proxied, "[2001:db8::1]:80", "10.0.5.2:15088 [2001:db8::1]:80", ""},
		{"tunnel: a name is announced as our network's IPv4 VIP", proxied, "proxied.svc:80", "10.0.5.2:15088 10.1.5.2:80", ""},
		{"tunnel: a name without VIP", proxied, "headless.svc:80", "", "requested service headless.svc found, but has no IP addresses"},
		{"tunnel: the proxy's ports stay closed", proxied, "10.0.9.9:15001", "", "attempted recursive call to ourselves"},
		{"tunnel: without PROXY, only the port", bare, "10.0.9.9:80", "10.0.5.3:15090", ""},
		{"tunnel: without a port, only PROXY", portless, "10.0.9.9:80", "10.0.5.4:80 10.0.9.9:80", ""},
	} {
		in := Inbound{Local: tc.local, Addr: tc.local.IPs[0], Illegal: IllegalPorts{15001, 15006, 15008}}
		target, err := ParseTarget(tc.target)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err = in.Validate(v, target); err == nil {
			var up Upstream
			if up, err = in.Upstream(v, target); err == nil {
				got = up.Addr.String()
				if up.Proxy.IsValid() {
					got += " " + up.Proxy.String()
				}
				if up.Dial != up.Addr {
					t.Errorf("%s: dials %v", tc.name, up.Dial)
				}
			}
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got != tc.want || text != tc.err {
			t.Errorf("%s: %s\ngot  %q %q\nwant %q %q", tc.name, tc.target, got, text, tc.want, tc.err)
		}
	}
}

func TestAnAnnouncedConnectionMayGoToLoopback(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		local      *mesh.Workload
	}{
		{"PROXY", "127.0.0.1:15088", hbone("w", "10.0.5.2", withTunnel(mesh.TunnelProxy, 15088))},
		{"PROXY in IPv6", "[::1]:15088", hbone("w", "fd00::2", withTunnel(mesh.TunnelProxy, 15088))},
		{"no PROXY", "10.0.5.2:15088", hbone("w", "10.0.5.2", withTunnel(mesh.TunnelNone, 15088))},
		{"no tunnel", "10.0.5.2:80", hbone("w", "10.0.5.2")},
	} {
		in := Inbound{Local: tc.local, Addr: tc.local.IPs[0], LocalhostTunnel: true}
		up, err := in.Upstream(build(tc.local), Target{Addr: netip.AddrPortFrom(in.Addr, 80), Port: 80})
		if err != nil {
			t.Fatal(err)
		}
		if up.Dial.String() != tc.want || up.Addr.Addr() != in.Addr {
			t.Errorf("%s: dials %v, policy judges %v", tc.name, up.Dial, up.Addr)
		}
	}
}

func TestWhichServiceAnInboundConnectionWasFor(t *testing.T) {
	pod := hbone("pod", "10.0.0.2", in("a.svc"), in("b.svc", 80, 9090), in("unknown.svc"))
	v := build(pod, service("a.svc", "10.1.0.1", []uint16{80, 8080}), service("b.svc", "10.1.0.2", []uint16{80, 0}), service("c.svc", "10.1.0.3", []uint16{80, 8080}))
	candidates := Services(v, pod)
	if len(candidates) != 2 || candidates[0].Hostname != "a.svc" || candidates[1].Hostname != "b.svc" {
		t.Fatalf("services of the pod: %v", candidates)
	}
	for _, tc := range []struct {
		name, host string
		port       uint16
		want       string
	}{
		{"as the client says", "b.svc", 8080, "b.svc"},
		{"by the service's port", "", 8080, "a.svc"},
		{"by the endpoint's port", "", 9090, "b.svc"},
		{"as the client says, but not ours", "c.svc", 9090, "b.svc"},
		{"unknown", "", 1, ""},
	} {
		got := ""
		if svc := GuessService(v, pod, candidates, tc.host, tc.port); svc != nil {
			got = svc.Hostname
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestForwarded(t *testing.T) {
	svc := &mesh.Service{Hostname: "svc.ns"}
	for _, tc := range []struct {
		src  string
		svc  *mesh.Service
		want string
	}{
		{"1.2.3.4:1234", nil, `for="1.2.3.4:1234"`},
		{"[::1]:1234", nil, `for="[::1]:1234"`},
		{"[::ffff:1.2.3.4]:1234", nil, `for="1.2.3.4:1234"`},
		{"1.2.3.4:1234", svc, `for="1.2.3.4:1234";host=svc.ns`},
	} {
		got := Forwarded(netip.MustParseAddrPort(tc.src), tc.svc)
		if got != tc.want {
			t.Errorf("%s: %s", tc.src, got)
		}
		if tc.svc != nil && ForwardedHost(got) != tc.svc.Hostname {
			t.Errorf("read back: %q", ForwardedHost(got))
		}
	}
}

func TestForwardedHost(t *testing.T) {
	for in, want := range map[string]string{
		`host=a`: "a", `for=x;host=a`: "a", `for=x; host="a"`: "a", `host=a;host=b`: "a", `host=`: "", `host=""`: "",
		`Host=a`: "", `for=x`: "", ``: "", `host="a`: `"a`, `host="`: `"`, "host=ä": "", `xhost=a`: "", `host=a,for=b`: "a,for=b",
	} {
		if got := ForwardedHost(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestEveryProperPrefixOfAForwardedHeader(t *testing.T) {
	const whole = `for="1.2.3.4:1";host=web.ns`
	for i := range whole {
		if got := ForwardedHost(whole[:i]); !strings.HasPrefix("web.ns", got) {
			t.Errorf("%q: %q", whole[:i], got)
		}
	}
}

func FuzzForwardedHost(f *testing.F) {
	f.Add(`for="1.2.3.4:1";host="a"`)
	f.Add("host=")
	f.Fuzz(func(t *testing.T, s string) { ForwardedHost(s) })
}
