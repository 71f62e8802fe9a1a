// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// Addresses of the packets below.
const (
	aClient   = "10.77.1.1"
	aStranger = "10.77.1.2"
	aServer   = "10.77.2.1"
	aResolver = "203.0.113.53"
)

func at(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

// epoch is when the packets below are seen.
var epoch = time.Unix(1000, 0)

func tcp(src, dst netip.AddrPort, seq uint32, payload string) *netlab.Packet {
	return &netlab.Packet{
		Time: epoch, EtherType: netlab.EtherTypeIPv4, Proto: netlab.ProtoTCP, Src: src, Dst: dst,
		TCP: &netlab.TCPHeader{Seq: seq, ACK: true, SYN: payload == ""}, Data: []byte("headers" + payload), Payload: []byte(payload),
	}
}

// aTunnel is a connection to port 15008 in one direction.
func aTunnel(payloads ...string) []*netlab.Packet {
	src, dst := at(aClient, 40000), at(aServer, portTunnel)
	out := []*netlab.Packet{tcp(src, dst, 99, "")}
	seq := uint32(100)
	for _, p := range payloads {
		out = append(out, tcp(src, dst, seq, p))
		seq += uint32(len(p))
	}
	return out
}

func wireOf(packets ...*netlab.Packet) *wire {
	return &wire{links: []*link{{name: "link", packets: packets}}, marker: []byte("0123456789abcdef0123456789abcdef")}
}

func TestOnlyTunnels(t *testing.T) {
	nd := &netlab.Packet{Time: epoch, EtherType: netlab.EtherTypeIPv6, Proto: netlab.ProtoICMPv6, Payload: []byte{135}}
	ping := &netlab.Packet{Time: epoch, EtherType: netlab.EtherTypeIPv6, Proto: netlab.ProtoICMPv6, Payload: []byte{128}}
	arp := &netlab.Packet{Time: epoch, EtherType: netlab.EtherTypeARP}
	odd := &netlab.Packet{Time: epoch, EtherType: 0x88cc}
	web := tcp(at(aStranger, 1), at(aServer, 80), 1, "GET")
	late := tcp(at(aStranger, 1), at(aServer, 80), 1, "GET")
	late.Time = epoch.Add(time.Hour)
	stranger := func() *pass {
		return &pass{name: "stranger", match: of(netip.MustParseAddr(aStranger)), from: epoch, until: epoch.Add(time.Second)}
	}
	for _, tc := range []struct {
		name    string
		packets []*netlab.Packet
		pass    *pass
		bad     bool
	}{
		{"tunnels and neighbours", append(aTunnel("x"), nd, arp), nil, false},
		{"no tunnel", []*netlab.Packet{nd}, nil, true},
		{"a ping", append(aTunnel("x"), ping), nil, true},
		{"another protocol", append(aTunnel("x"), odd), nil, true},
		{"plaintext", append(aTunnel("x"), web), nil, true},
		{"plaintext that is excepted", append(aTunnel("x"), web), stranger(), false},
		{"plaintext after its step", append(aTunnel("x"), web, late), stranger(), true},
		{"an exception that nothing needs", aTunnel("x"), stranger(), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := wireOf(tc.packets...)
			if tc.pass != nil {
				w.passes = append(w.passes, tc.pass)
			}
			if saw, err := w.onlyTunnels(); (err != nil) != tc.bad {
				t.Errorf("%s, %v", saw, err)
			}
		})
	}
}

func TestOnlyTLS(t *testing.T) {
	good := string(join(record(typeHandshake, clientHello), record(typeApplicationData, 1, 2)))
	headless := aTunnel(good)[1:]
	for _, tc := range []struct {
		name    string
		packets []*netlab.Packet
		err     string
	}{
		{"TLS", aTunnel(good[:3], good[3:]), ""},
		{"not TLS", aTunnel("PRI * HTTP/2.0\r\n"), "no TLS record"},
		{"not TLS later", aTunnel(good, "PRI * HTTP/2.0\r\n"), "no TLS record"},
		{"a segment is missing", append(aTunnel(good[:3], good[3:5])[:2], aTunnel(good[:3], good[3:5], good[5:])[3]), "missing"},
		{"the beginning was not seen", append(headless, nothing()...), "beginning"},
		{"nothing", nothing(), "no tunnel"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := wireOf(tc.packets...).onlyTLS()
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%v, want %q", err, tc.err)
			}
		})
	}
}

func nothing() []*netlab.Packet { return []*netlab.Packet{{EtherType: netlab.EtherTypeARP}} }

func TestFindTheMarker(t *testing.T) {
	all := func(*netlab.Packet) bool { return true }
	w := wireOf()
	m := string(w.marker)
	for _, tc := range []struct {
		name    string
		packets []*netlab.Packet
		found   bool
	}{
		{"in a packet", aTunnel("..." + m + "..."), true},
		{"over two packets", aTunnel("..."+m[:10], m[10:]), true},
		{"half of it", aTunnel(m[:31]), false},
		{"in no stream", []*netlab.Packet{{Data: []byte(m)}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.links[0].packets = tc.packets
			if hits, looked, _ := w.find(all); (hits > 0) != tc.found || looked != len(tc.packets) {
				t.Errorf("%d hits in %d packets", hits, looked)
			}
		})
	}
	w.links[0].packets = aTunnel(m)
	if hits, looked, _ := w.find(of(netip.MustParseAddr(aStranger))); hits+looked > 0 {
		t.Errorf("%d hits in %d packets of somebody else", hits, looked)
	}
}

// TestForwardedNamesAlonePass: our own names must not be seen upstream.
func TestForwardedNamesAlonePass(t *testing.T) {
	pod, server := at(aClient, 5353), at(aResolver, 53)
	match := forwarded(pod.Addr(), server.Addr())
	query := func(name string, src, dst netip.AddrPort) *netlab.Packet {
		b, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		return &netlab.Packet{EtherType: netlab.EtherTypeIPv4, Proto: netlab.ProtoUDP, Src: src, Dst: dst, Payload: b}
	}
	garbled := query(forwardedName, pod, server)
	garbled.Payload = garbled.Payload[:20]
	for _, tc := range []struct {
		name   string
		packet *netlab.Packet
		want   bool
	}{
		{"a forwarded name", query(forwardedName, pod, server), true},
		{"in capitals", query(strings.ToUpper(forwardedName), pod, server), true},
		{"its answer", query(missingName, server, pod), true},
		{"a name of ours", query(serverName, pod, server), false},
		{"another pod's", query(forwardedName, at(aStranger, 1), server), false},
		{"another port", query(forwardedName, pod, at(aResolver, 5353)), false},
		{"no DNS", garbled, false},
		{"over TCP", tcp(pod, server, 1, "x"), false},
	} {
		if got := match(tc.packet); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestPassesBetween(t *testing.T) {
	match := between(netip.MustParseAddr(aStranger), at(aServer, 7007))
	for _, tc := range []struct {
		src, dst netip.AddrPort
		want     bool
	}{
		{at(aStranger, 4000), at(aServer, 7007), true},
		{at(aServer, 7007), at(aStranger, 4000), true},
		{at(aStranger, 4000), at(aServer, 80), false},
		{at(aClient, 4000), at(aServer, 7007), false},
	} {
		if got := match(tcp(tc.src, tc.dst, 1, "x")); got != tc.want {
			t.Errorf("%v > %v: %v", tc.src, tc.dst, got)
		}
	}
}
