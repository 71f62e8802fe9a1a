// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/netlab"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
	"github.com/ztunnel-go/ztunnel/test/privileged"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// dedicate runs a proxy in a pod, for it alone.
func (w *world) dedicate(pod *netlab.Pod, o rig.Dedicated) *rig.Proxy {
	w.t.Helper()
	o.Namespace = namespaceOf(pod)
	p, err := w.mesh.StartDedicated(pod, o)
	must(w.t, err)
	return p
}

// marked are the variables of a proxy whose pod has rig.IstioCNI.
func marked(more ...string) map[string]string {
	env := map[string]string{"PACKET_MARK": "1337"}
	for _, v := range more {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	return env
}

// TestDedicated has a pod's proxy live in the pod, on both sides, with rules
// of others that lead there.
func TestDedicated(t *testing.T) {
	w := plan(t)
	forwarded := netip.MustParseAddr("203.0.113.7")
	w.serve(w.outside.Host, serve.Options{HTTP: port(portHTTP), DNS: port(53), Records: map[string][]netip.Addr{outsideName: {forwarded}}})
	redirect(t, w.a, rig.IstioCNI)
	redirect(t, w.b, rig.IstioCNI)
	resolv := filepath.Join(w.lab.Dir(), "dedicated.conf")
	must(t, os.WriteFile(resolv, fmt.Appendf(nil, "search company.example\nnameserver %v\n", w.outside.IPv4), 0o600))
	w.p1 = w.dedicate(w.a, rig.Dedicated{Env: marked("RESOLV_CONF=" + resolv)})
	w.p2 = w.dedicate(w.b, rig.Dedicated{Env: marked("CONNECTION_TERMINATION_DEADLINE=15s")})
	w.ready(w.p1, w.p2)

	t.Run("mutual TLS", func(t *testing.T) { w.dedicatedTunnels(t) })
	t.Run("plaintext", func(t *testing.T) {
		if saw := get(t, w.a.Host, at(w.outside.IPv4, portHTTP)); saw.Server != "outside" {
			t.Errorf("a reached %+v", saw)
		}
		if saw := get(t, w.stranger.Host, w.b.Addr(portHTTP)); saw.Server != "b" || peerOf(t, saw) != w.stranger.IPv4 {
			t.Errorf("the stranger reached %+v", saw)
		}
	})
	t.Run("names", func(t *testing.T) {
		pc, err := w.a.ListenPacket("udp4", "0.0.0.0:0")
		must(t, err)
		defer pc.Close()
		for name, want := range map[string]netip.Addr{
			serviceName: serviceVIPs()[0], outsideName: forwarded,
			serviceName + ".company.example": serviceVIPs()[0], // of the search list, which only this mode heeds
		} {
			ask(t, pc, at(w.resolvers[0], 53), name, want)
			reply, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA),
				&dns.Conn{Conn: w.dial(t, w.a.Host, at(w.resolvers[0], 53))})
			must(t, err)
			wantAddress(t, reply, want)
		}
	})
	t.Run("strict", func(t *testing.T) {
		w.policies(rig.Strict("default"))
		if err := refused(w.stranger.Host, w.b.Addr(portEcho), []byte("hello")); !wasReset(err) && !errors.Is(err, io.EOF) {
			t.Errorf("the stranger saw %v", err)
		}
		must(t, refused(w.a.Host, w.b.Addr(portEcho), []byte("hello")))
	})
	t.Run("pages", func(t *testing.T) { w.dedicatedPages(t) })
	t.Run("drain", func(t *testing.T) {
		open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
		echo(t, open, []byte("before"))
		must(t, w.p2.Signal(unix.SIGTERM))
		w.logged(t, w.p2, 0, "received signal SIGTERM, starting shutdown")
		w.eventually(t, func() error {
			if _, _, err := w.p2.Get(t.Context(), rig.ReadyPage); err == nil {
				return errors.New("readiness is still answered")
			}
			return nil
		})
		echo(t, open, []byte("meanwhile"))
		if err := refused(w.a.Host, w.b.Addr(portEcho), []byte("new")); err == nil {
			t.Error("a draining proxy took a new connection")
		}
		must(t, open.CloseWrite())
		if err := ended(open); !errors.Is(err, io.EOF) {
			t.Errorf("the connection ended with %v", err)
		}
		if code, err := w.p2.Wait(w.patience()); code != 0 || err != nil {
			t.Errorf("it ended with %d, %v", code, err)
		}
	})
}

// dedicatedTunnels asks by the pod's addresses and the service's.
func (w *world) dedicatedTunnels(t *testing.T) {
	secret := w.watch(t, w.a, w.b)
	since1, since2 := w.p1.Output.Mark(), w.p2.Output.Mark()
	for to, client := range map[netip.AddrPort]netip.Addr{
		w.b.Addr(portHTTP): w.a.IPv4, w.b.Addr6(portHTTP): w.a.IPv6,
		at(serviceVIPs()[0], 80): w.a.IPv4, at(serviceVIPs()[1], 80): w.a.IPv6,
	} {
		saw := get(t, w.a.Host, to)
		if peer := peerOf(t, saw); saw.Server != "b" || (peer != client && to.Addr() != serviceVIPs()[0] && to.Addr() != serviceVIPs()[1]) {
			t.Errorf("%v: %+v", to, saw)
		}
	}
	for _, to := range []netip.AddrPort{w.b.Addr(portEcho), at(serviceVIPs()[0], 7)} {
		echo(t, w.dial(t, w.a.Host, to), secret.marker)
	}
	secret.kept(t)
	who := []string{`src.identity="spiffe://` + rig.Principal("default", "a") + `"`, `dst.identity="spiffe://` + rig.Principal("default", "b") + `"`}
	w.logged(t, w.p1, since1, append(who, "connection complete", `dst.service="`+serviceName+`"`, `direction="outbound"`)...)
	w.logged(t, w.p2, since2, append(who, "connection complete", `direction="inbound"`)...)
}

// dedicatedPages looks for what this mode has not (contract 18).
func (w *world) dedicatedPages(t *testing.T) {
	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("hello"))
	for page, want := range map[string]struct{ has, lacks string }{
		"15000/config_dump": {`"proxyMode": "Dedicated"`, "workloadState"},
		"15000/debug/live":  {fmt.Sprintf(`"originalDst": "%v"`, w.b.Addr(portEcho)), "workloadState"},
		"15020/metrics":     {"istio_tcp_connections_opened_total{", "workload_manager"},
		rig.ReadyPage:       {"", "in-pod"},
	} {
		status, body, err := w.p1.Get(t.Context(), page)
		must(t, err)
		if status != http.StatusOK || !strings.Contains(body, want.has) || strings.Contains(body, want.lacks) {
			t.Errorf("%s: %d, want %q and no %q:\n%.2000s", page, status, want.has, want.lacks, body)
		}
	}
	for _, page := range []string{"15000/debug/pods", "15000/debug/bpf"} {
		if status, _, err := w.p1.Get(t.Context(), page); status != http.StatusNotFound || err != nil {
			t.Errorf("%s: %d, %v", page, status, err)
		}
	}
}

// TestDedicatedBesideANode has a dedicated proxy speak with one that serves a
// node's pods, both ways.
func TestDedicatedBesideANode(t *testing.T) {
	w := plan(t)
	w.serve(w.a.Host, serve.Options{HTTP: port(portHTTP)})
	redirect(t, w.a, rig.IstioCNI)
	w.p1 = w.dedicate(w.a, rig.Dedicated{Env: marked("CONNECTION_TERMINATION_DEADLINE=1s")})
	w.p2 = w.start(w.n2, rig.Options{})
	w.enrol(w.p2, w.b)
	w.ready(w.p1, w.p2)
	w.policies(rig.Strict("default"))
	if saw := get(t, w.a.Host, w.b.Addr(portHTTP)); saw.Server != "b" || peerOf(t, saw) != w.a.IPv4 {
		t.Errorf("a reached %+v", saw)
	}
	if saw := get(t, w.b.Host, w.a.Addr(portHTTP)); saw.Server != "a" || peerOf(t, saw) != w.b.IPv4 {
		t.Errorf("b reached %+v", saw)
	}
	w.logged(t, w.p1, 0, "connection complete", `src.identity="spiffe://`+rig.Principal("default", "b")+`"`, `direction="inbound"`)

	open := w.dial(t, w.a.Host, w.b.Addr(portEcho))
	echo(t, open, []byte("before"))
	must(t, w.p1.Signal(unix.SIGTERM))
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
	w.logged(t, w.p1, 0, "\twarn\t", "drain duration expired with pending connections, forcefully shutting down")
	if err := ended(open); isTimeout(err) {
		t.Error("the connection outlived the proxy")
	}
}

// unprivileged takes from a command what marks and transparent sockets need.
func unprivileged() []string {
	return []string{"setpriv", "--regid=1337", "--clear-groups", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-net_admin,-net_raw"}
}

// TestDedicatedWithoutPrivileges does without clients' addresses where the
// kernel does not allow them, unless they are insisted on.
func TestDedicatedWithoutPrivileges(t *testing.T) {
	w := plan(t)
	if _, err := exec.LookPath(unprivileged()[0]); err != nil {
		privileged.Lacking(t, err)
	}
	redirect(t, w.a, groupRules)
	redirect(t, w.b, groupRules)
	for variable, want := range map[string]string{
		"ENABLE_ORIG_SRC=true": "Error: outbound: failed to bind to address [::]:15001: ENABLE_ORIG_SRC=true needs CAP_NET_ADMIN or CAP_NET_RAW",
		"PACKET_MARK=1337":     "Error: PACKET_MARK: failed to set mark on socket. make sure ztunnel has CAP_NET_RAW, CAP_NET_ADMIN",
	} {
		name, value, _ := strings.Cut(variable, "=")
		w.failsToStart(t, w.a, rig.Dedicated{Wrap: unprivileged(), Env: map[string]string{name: value}}, want)
	}
	forwarded := netip.MustParseAddr("203.0.113.7")
	w.serve(w.outside.Host, serve.Options{DNS: port(53), Records: map[string][]netip.Addr{outsideName: {forwarded}}})
	w.p1 = w.dedicate(w.a, rig.Dedicated{Wrap: unprivileged()})
	w.p2 = w.dedicate(w.b, rig.Dedicated{Wrap: unprivileged(), Env: map[string]string{"ISTIO_META_DNS_CAPTURE": "false"}})
	w.ready(w.p1, w.p2)
	w.policies(rig.Strict("default"))
	for _, to := range []netip.AddrPort{w.b.Addr(portHTTP), w.b.Addr6(portHTTP), at(serviceVIPs()[0], 80)} {
		if saw := get(t, w.a.Host, to); saw.Server != "b" || peerOf(t, saw) == w.a.IPv4 || peerOf(t, saw) == w.a.IPv6 {
			t.Errorf("%v: %+v", to, saw)
		}
	}
	pc, err := w.a.ListenPacket("udp4", "0.0.0.0:0")
	must(t, err)
	defer pc.Close()
	ask(t, pc, at(w.resolvers[0], 53), serviceName, serviceVIPs()[0])
	ask(t, pc, at(w.resolvers[0], 53), outsideName, forwarded)
	w.logged(t, w.p1, 0, "\twarn\t", "transparent sockets are not permitted")
	w.logged(t, w.p1, 0, "listener established", `component="inbound"`, "transparent=false")
}

// failsToStart wants status 1 and one line of why.
func (w *world) failsToStart(t *testing.T, pod *netlab.Pod, o rig.Dedicated, want string) {
	t.Helper()
	p := w.dedicate(pod, o)
	if code, err := p.Wait(w.patience()); code != 1 || err != nil {
		t.Errorf("%s: it ended with %d, %v", want, code, err)
	}
	w.logged(t, p, 0, want)
}

// TestDedicatedPortsThatAreTaken name themselves.
func TestDedicatedPortsThatAreTaken(t *testing.T) {
	w := plan(t)
	for _, tc := range []struct{ network, addr, want string }{
		{"tcp", ":15001", "Error: outbound: failed to bind to address [::]:15001: listen on tcp [::]:15001: bind: address already in use"},
		{"tcp", ":15006", "Error: inbound plaintext: failed to bind to address [::]:15006: "},
		{"tcp", ":15008", "Error: inbound: failed to bind to address [::]:15008: "},
		{"tcp", "127.0.0.1:15080", "Error: SOCKS5: listen on tcp 127.0.0.1:15080: bind: address already in use"},
		{"tcp", "127.0.0.1:15053", "Error: DNS: failed to bind to address 127.0.0.1:15053: "},
		{"udp", "127.0.0.1:15053", "Error: DNS: failed to bind to address 127.0.0.1:15053: "},
		{"tcp", "127.0.0.1:15000", "Error: admin server"},
	} {
		t.Run(tc.network+" "+tc.addr, func(t *testing.T) {
			var taken io.Closer
			var err error
			if tc.network == "udp" {
				taken, err = w.a.ListenPacket(tc.network, tc.addr)
			} else {
				taken, err = w.a.Listen(tc.network, tc.addr)
			}
			must(t, err)
			defer taken.Close()
			w.failsToStart(t, w.a, rig.Dedicated{Env: map[string]string{"UNSTABLE_ENABLE_SOCKS5": "true"}}, tc.want)
		})
	}
}

// TestDedicatedWithoutRedirection has clients ask by SOCKS5 and DNS: nobody
// has made rules.
func TestDedicatedWithoutRedirection(t *testing.T) {
	w := plan(t)
	w.serve(w.a.Host, serve.Options{Echo: port(portEcho)})
	w.wa.IPs = append(w.wa.IPs, netip.MustParseAddr("127.0.0.1"))
	const selfName = "self.example.com"
	self := &rig.Service{Name: "self", Namespace: "default", Hostname: selfName, VIPs: []string{"/127.10.0.1"}, Ports: map[uint16]uint16{7: portEcho}}
	w.state.Services = append(w.state.Services, self.Join(w.wa))
	must(t, w.mesh.SetState(w.state))
	w.p1 = w.dedicate(w.a, rig.Dedicated{Env: map[string]string{
		"UNSTABLE_ENABLE_SOCKS5": "true", "ISTIO_META_DNS_PROXY_ADDR": w.a.Addr(5353).String(),
	}})
	w.p2 = w.dedicate(w.b, rig.Dedicated{Env: map[string]string{"ENABLE_ORIG_SRC": "false", "IPV6_ENABLED": "false"}})
	w.ready(w.p1, w.p2)
	// Nothing is fetched before it is needed (contract 7.6).
	if _, body, err := w.p1.Get(t.Context(), "15000/config_dump"); err != nil || !strings.Contains(body, `"certificates": []`) {
		t.Errorf("%v, %.300s", err, body)
	}
	secret := w.watch(t, w.a, w.b)
	proxy := netip.MustParseAddrPort("127.0.0.1:15080")
	c := w.dial(t, w.a.Host, proxy)
	socks(t, c, 0, serviceName, 7)
	echo(t, c, secret.marker)
	secret.kept(t)
	own := w.dial(t, w.a.Host, proxy)
	socks(t, own, 0, selfName, 7)
	echo(t, own, []byte("to myself"))
	must(t, own.Close())
	w.logged(t, w.p1, 0, "connection complete", `src.identity="spiffe://`+rig.Principal("default", "a")+`"`, `dst.workload="a"`, `direction="inbound"`)
	pc, err := w.a.ListenPacket("udp4", "0.0.0.0:0")
	must(t, err)
	defer pc.Close()
	ask(t, pc, w.a.Addr(5353), serviceName, serviceVIPs()[0])
	if err := refused(w.b.Host, w.b.Addr6(15008), nil); !isRefused(err) {
		t.Errorf("IPV6_ENABLED=false, and 15008 is open on IPv6: %v", err)
	}

	t.Run("asked to stop by its page", func(t *testing.T) {
		resp, err := w.a.HTTPClient().Post("http://127.0.0.1:15000/quitquitquit", "", nil)
		must(t, err)
		must(t, resp.Body.Close())
		echo(t, c, []byte("still here"))
		must(t, c.Close())
		w.logged(t, w.p2, 0, "\tinfo\t", "connection complete", `src.identity="spiffe://`+rig.Principal("default", "a")+`"`, `direction="inbound"`)
		if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
			t.Errorf("it ended with %d, %v", code, err)
		}
	})
}

// TestDedicatedNamesOnly answers names and proxies nothing (ENABLE_PROXY).
func TestDedicatedNamesOnly(t *testing.T) {
	w := plan(t)
	w.p1 = w.dedicate(w.a, rig.Dedicated{Env: map[string]string{"ENABLE_PROXY": "false", "UNSTABLE_ENABLE_SOCKS5": "true"}})
	w.ready(w.p1)
	pc, err := w.a.ListenPacket("udp4", "127.0.0.1:0")
	must(t, err)
	defer pc.Close()
	ask(t, pc, netip.MustParseAddrPort("127.0.0.1:15053"), serviceName, serviceVIPs()[0])
	for _, number := range []uint16{15001, 15006, 15008, 15080} {
		if err := refused(w.a.Host, at(netip.MustParseAddr("127.0.0.1"), number), nil); !isRefused(err) {
			t.Errorf("port %d: %v", number, err)
		}
	}
	must(t, w.p1.Signal(unix.SIGTERM))
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
}

// TestDedicatedWaitsForItsState takes no connection before it knows the mesh,
// and ends at once if it is told to before.
func TestDedicatedWaitsForItsState(t *testing.T) {
	w := plan(t)
	w.p1 = w.dedicate(w.a, rig.Dedicated{Env: map[string]string{"XDS_ADDRESS": "https://127.0.0.1:1", "UNSTABLE_ENABLE_SOCKS5": "true"}})
	w.logged(t, w.p1, 0, "Task 'proxy' complete")
	c := w.dial(t, w.a.Host, netip.MustParseAddrPort("127.0.0.1:15080"))
	_, err := c.Write([]byte{5, 1, 0})
	must(t, err)
	must(t, w.p1.Signal(unix.SIGTERM))
	if n, err := c.Read(make([]byte, 2)); err == nil {
		t.Errorf("%d bytes of an answer came", n)
	}
	if code, err := w.p1.Wait(w.patience()); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
	w.logged(t, w.p1, 0, "shutdown complete")
}
