// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// A wire is all that passed the links of the lab: both nodes' links to the
// fabric, which all packets between nodes take, and those of the mesh's pods,
// which packets between pods of one node take.
type wire struct {
	links  []*link
	marker []byte // the payload to be looked for
	passes []*pass
}

type link struct {
	name     string
	recorder *netlab.Recorder
	packets  []*netlab.Packet // once stopped
}

// A pass allows packets other than tunnels, while a step lasts that says why.
type pass struct {
	name        string
	match       func(*netlab.Packet) bool
	from, until time.Time
	seen        int // packets
}

// settleTime is how long after a step its connections' last packets may come.
const settleTime = time.Second

// markerSize makes it impossible that the marker is found by chance.
const markerSize = 32

func (d *demo) record(nodes ...*netlab.Node) (*wire, error) {
	w := &wire{marker: make([]byte, markerSize)}
	rand.Read(w.marker) // never fails since Go 1.24
	add := func(name string, h *netlab.Host, device string) error {
		r, err := h.Record(device, nil)
		if err == nil {
			w.links = append(w.links, &link{name: name, recorder: r})
		}
		return err
	}
	for _, n := range nodes {
		if err := add("fabric-"+n.Name(), d.lab.Fabric(), n.Port); err != nil {
			return w, err
		}
	}
	for _, p := range d.pods() {
		if !p.captured {
			continue
		}
		if err := add(p.Name(), p.Pod.Node().Host, p.VethName); err != nil {
			return w, err
		}
	}
	return w, nil
}

// allow begins to let packets pass; the function returned ends it.
func (w *wire) allow(name string, match func(*netlab.Packet) bool) func() {
	p := &pass{name: name, match: match, from: time.Now()}
	w.passes = append(w.passes, p)
	return func() { p.until = time.Now().Add(settleTime) }
}

// of matches what an address sends or gets.
func of(addr netip.Addr) func(*netlab.Packet) bool {
	return func(p *netlab.Packet) bool { return p.Src.Addr() == addr || p.Dst.Addr() == addr }
}

// between matches a flow of TCP: from any port of a client to a server's.
func between(client netip.Addr, server netip.AddrPort) func(*netlab.Packet) bool {
	return func(p *netlab.Packet) bool {
		return p.Proto == netlab.ProtoTCP &&
			(p.Src.Addr() == client && p.Dst == server || p.Dst.Addr() == client && p.Src == server)
	}
}

// forwarded matches DNS between a pod and the nameserver about names that are
// not the mesh's.
func forwarded(pod netip.Addr, nameserver netip.Addr) func(*netlab.Packet) bool {
	return func(p *netlab.Packet) bool {
		at := netip.AddrPortFrom(nameserver, 53)
		if p.Proto != netlab.ProtoUDP || !(p.Src.Addr() == pod && p.Dst == at || p.Dst.Addr() == pod && p.Src == at) {
			return false
		}
		var m dns.Msg
		if m.Unpack(p.Payload) != nil || len(m.Question) != 1 {
			return false
		}
		name := strings.TrimSuffix(strings.ToLower(m.Question[0].Name), ".")
		return name == forwardedName || name == missingName
	}
}

// stop ends the recording.
func (w *wire) stop() error {
	var errs []error
	for _, l := range w.links {
		var err error
		if l.packets, err = l.recorder.Stop(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.name, err))
		}
	}
	return errors.Join(errs...)
}

// close ends the recorders of a demo that did not come so far.
func (w *wire) close() error {
	if w == nil {
		return nil
	}
	return w.stop()
}

// save writes the recordings for other tools to read.
func (w *wire) save(dir string) error {
	for _, l := range w.links {
		var b bytes.Buffer
		if err := netlab.WritePcap(&b, l.packets); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, l.name+".pcap"), b.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// kindOf says by what right a packet is there; empty if by none.
func (w *wire) kindOf(p *netlab.Packet) string {
	switch {
	case p.EtherType == netlab.EtherTypeARP:
		return "ARP"
	case isICMPv6(p, 133, 137): // RFC 4861
		return "ND"
	case isICMPv6(p, 130, 132), isICMPv6(p, 143, 143): // RFC 3810; joins the groups that ND uses
		return "MLD"
	case isTunnel(p):
		return "15008"
	}
	for _, e := range w.passes {
		if !p.Time.Before(e.from) && (e.until.IsZero() || p.Time.Before(e.until)) && e.match(p) {
			e.seen++
			return e.name
		}
	}
	return ""
}

const portTunnel = 15008

func isTunnel(p *netlab.Packet) bool {
	return p.Proto == netlab.ProtoTCP && (p.Src.Port() == portTunnel || p.Dst.Port() == portTunnel)
}

func isICMPv6(p *netlab.Packet, from, to byte) bool {
	return p.EtherType == netlab.EtherTypeIPv6 && p.Proto == netlab.ProtoICMPv6 && len(p.Payload) > 0 &&
		p.Payload[0] >= from && p.Payload[0] <= to
}

// onlyTunnels checks that every packet had a right to be there, and tells how
// many there were of each kind.
func (w *wire) onlyTunnels() (string, error) {
	var odd []string
	counts := map[string]int{}
	for _, l := range w.links {
		tunnels := 0
		for _, p := range l.packets {
			kind := w.kindOf(p)
			if kind == "" {
				odd = append(odd, fmt.Sprintf("%s: %v", l.name, p))
				continue
			}
			counts[kind]++
			if isTunnel(p) {
				tunnels++
			}
		}
		if tunnels == 0 {
			return "", fmt.Errorf("no tunnel was seen on %s", l.name)
		}
	}
	if len(odd) > 0 {
		return "", fmt.Errorf("%d packets that should not be there, such as\n%s", len(odd), strings.Join(odd[:min(5, len(odd))], "\n"))
	}
	var told []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		told = append(told, fmt.Sprintf("%s: %d", kind, counts[kind]))
	}
	return strings.Join(told, "\n"), w.passesUsed()
}

// passesUsed finds exceptions that matched nothing: their step did not do
// what it says.
func (w *wire) passesUsed() error {
	for _, e := range w.passes {
		if e.seen == 0 {
			return fmt.Errorf("no packet was of the exception %q", e.name)
		}
	}
	return nil
}

// onlyTLS checks that tunnels are TLS from their first byte on.
func (w *wire) onlyTLS() (string, error) {
	tunnels, records := 0, 0
	for _, l := range w.links {
		packets := slices.DeleteFunc(slices.Clone(l.packets), func(p *netlab.Packet) bool { return !isTunnel(p) })
		known := map[[2]netip.AddrPort]bool{}
		for _, s := range netlab.Streams(packets) {
			known[[2]netip.AddrPort{s.Src, s.Dst}] = true
			n, err := walkStream(s)
			if err != nil {
				return "", fmt.Errorf("%s: %v > %v: %w", l.name, s.Src, s.Dst, err)
			}
			records += n
			tunnels++
		}
		for _, p := range packets {
			if len(p.Payload) > 0 && !known[[2]netip.AddrPort{p.Src, p.Dst}] {
				return "", fmt.Errorf("%s: %v belongs to no connection whose beginning was seen", l.name, p)
			}
		}
	}
	if records == 0 {
		return "", errors.New("no tunnel was seen")
	}
	return fmt.Sprintf("%d directions of tunnels, %d records", tunnels, records), nil
}

func walkStream(s *netlab.Stream) (int, error) {
	if s.Hole {
		return 0, errors.New("a segment is missing")
	}
	hello := byte(clientHello)
	if s.Src.Port() == portTunnel {
		hello = serverHello
	}
	return walkTLS(s.Data, hello, s.FIN)
}

// find tells how many packets that match carry the marker. It looks at packets
// as they are and at the streams they make up.
func (w *wire) find(match func(*netlab.Packet) bool) (hits, looked int, first string) {
	hit := func(l *link, what string) {
		if hits++; first == "" {
			first = l.name + ": " + what
		}
	}
	for _, l := range w.links {
		packets := slices.DeleteFunc(slices.Clone(l.packets), func(p *netlab.Packet) bool { return !match(p) })
		looked += len(packets)
		for _, p := range packets {
			if bytes.Contains(p.Data, w.marker) {
				hit(l, p.String())
			}
		}
		for _, s := range netlab.Streams(packets) {
			if bytes.Contains(s.Data, w.marker) {
				hit(l, fmt.Sprintf("stream %v > %v", s.Src, s.Dst))
			}
		}
	}
	return hits, looked, first
}
