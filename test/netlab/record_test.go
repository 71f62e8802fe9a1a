// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/netip"
	"testing"

	"github.com/ztunnel-go/ztunnel/test/leak"
	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

func TestRecorderSeesEveryByte(t *testing.T) {
	leak.Check(t)
	l, a, b := twoNodes(t)
	must(b.Serve(serve.Options{Sink: ":9"}))(t)
	links := map[string]*Recorder{
		"fabric": must(l.Fabric().Record(a.Node().Port, nil))(t),
		"veth":   must(b.Node().Record(b.VethName, func(p *Packet) bool { return p.TCP != nil }))(t),
		"pod":    must(a.Record("eth0", nil))(t),
	}
	const size = 20_000_000
	for _, to := range []string{b.Addr(9).String(), b.Addr6(9).String()} {
		c := must(a.Dial(t.Context(), "tcp", to))(t)
		if _, err := io.Copy(c, serve.Pattern(size)); err != nil {
			t.Fatal(err)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	want, _ := io.ReadAll(serve.Pattern(size))
	for name, r := range links {
		packets, err := r.Stop()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, src := range []netip.Addr{a.IPv4, a.IPv6} {
			if got := stream(packets, src); !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes from %v in %d packets, want %d", name, len(got), src, len(packets), size)
			}
		}
		sent := 0
		for _, p := range packets {
			if p.Sent {
				sent++
			}
		}
		if sent == 0 || sent == len(packets) {
			t.Errorf("%s: %d of %d packets were sent", name, sent, len(packets))
		}
	}
	if _, err := a.Record("nope", nil); err == nil {
		t.Error("recorded a link that is not there")
	}
}

// stream is what src sent over its one TCP connection.
func stream(packets []*Packet, src netip.Addr) []byte {
	for _, s := range Streams(packets) {
		if s.Src.Addr() == src && s.FIN && !s.Hole {
			return s.Data
		}
	}
	return nil
}

func FuzzPacket(f *testing.F) {
	for _, seed := range seeds {
		b, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := Packet{Data: b}
		p.parse()
		_ = p.String()
		if len(p.Payload) > len(b) {
			t.Errorf("%d bytes of payload in %d", len(p.Payload), len(b))
		}
	})
}

// seeds are a SYN over IPv4, a UDP datagram behind a hop-by-hop header over
// IPv6, an ARP request and a second fragment.
var seeds = []string{
	"020000000001020000000002" + "0800" + "4500002800010000400600000a4d01010a4d0201" + "123400500000000100000000500220000000" + "0000",
	"020000000001020000000002" + "86dd" + "6000000000120040" + "fd770000000000010000000000000001" + "fd770000000000020000000000000001" + "1100010400000000" + "00350035000a0000abcd",
	"020000000001ffffffffffff" + "0806" + "0001080006040001020000000001" + "0a4d0001" + "000000000000" + "0a4d0002",
	"020000000001020000000002" + "0800" + "4500001c00010001401100000a4d01010a4d0201" + "0102030405060708",
}

func TestPacketParsesWhatItCan(t *testing.T) {
	var parsed []Packet
	for _, seed := range seeds {
		b, err := hex.DecodeString(seed)
		if err != nil {
			t.Fatal(err)
		}
		p := Packet{Data: b}
		p.parse()
		parsed = append(parsed, p)
		for n := range b {
			short := Packet{Data: b[:n]}
			short.parse() // must not panic
			_ = short.String()
		}
	}
	if p := parsed[0]; p.TCP == nil || !p.TCP.SYN || p.TCP.Seq != 1 || p.Dst != netip.MustParseAddrPort("10.77.2.1:80") || len(p.Payload) != 0 {
		t.Errorf("SYN: %v", &p)
	}
	if p := parsed[1]; p.Proto != ProtoUDP || p.Src != netip.MustParseAddrPort("[fd77:0:0:1::1]:53") || !bytes.Equal(p.Payload, []byte{0xab, 0xcd}) {
		t.Errorf("UDP: %v %x", &p, p.Payload)
	}
	if p := parsed[2]; p.EtherType != EtherTypeARP || p.Src.IsValid() {
		t.Errorf("ARP: %v", &p)
	}
	if p := parsed[3]; p.Proto != ProtoUDP || p.Src.Port() != 0 {
		t.Errorf("fragment: %v", &p)
	}
}

func TestPcapHasEveryFrame(t *testing.T) {
	var buf bytes.Buffer
	if err := WritePcap(&buf, []*Packet{{Data: []byte("one")}, {Data: []byte("three")}}); err != nil {
		t.Fatal(err)
	}
	if want := 24 + 16 + 3 + 16 + 5; buf.Len() != want {
		t.Errorf("%d bytes, want %d", buf.Len(), want)
	}
}
