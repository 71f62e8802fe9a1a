// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// A Packet is one frame seen on a link. Large TCP segments appear whole, as
// the kernel passes them over a veth, so a frame may be 64 KiB long.
type Packet struct {
	Time time.Time
	// Sent tells frames that left by the link from those that came in.
	Sent bool
	// Data is the frame from its Ethernet header on.
	Data []byte

	// EtherType is an unix.ETH_P_ number: ARP 0x806, IPv4 0x800, IPv6 0x86dd.
	EtherType uint16
	// Proto is the IP protocol number (6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6),
	// after IPv6 extension headers; 0 where there is no IP.
	Proto uint8
	// Src and Dst are the IP addresses, with ports for TCP and UDP and port 0
	// for anything else. A fragment but the first has no ports.
	Src, Dst netip.AddrPort
	// TCP is set for TCP packets that carry a whole header.
	TCP *TCPHeader
	// Payload follows the innermost header that was understood. It is part of
	// Data, without what Ethernet may have padded.
	Payload []byte
}

// A TCPHeader is what tests ask about a segment (RFC 9293 section 3.1).
type TCPHeader struct {
	Seq, Ack           uint32
	SYN, ACK, FIN, RST bool
	PSH                bool
}

// Ethernet types and IP protocols as they stand in Packet.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd

	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// String is one line in the manner of tcpdump.
func (p *Packet) String() string {
	switch {
	case p.TCP != nil:
		flags := ""
		for _, f := range []struct {
			on   bool
			name string
		}{{p.TCP.SYN, "S"}, {p.TCP.FIN, "F"}, {p.TCP.RST, "R"}, {p.TCP.PSH, "P"}, {p.TCP.ACK, "."}} {
			if f.on {
				flags += f.name
			}
		}
		return fmt.Sprintf("%v > %v tcp [%s] seq %d ack %d len %d", p.Src, p.Dst, flags, p.TCP.Seq, p.TCP.Ack, len(p.Payload))
	case p.Src.IsValid():
		return fmt.Sprintf("%v > %v proto %d len %d", p.Src, p.Dst, p.Proto, len(p.Payload))
	default:
		return fmt.Sprintf("ethertype %#04x len %d", p.EtherType, len(p.Payload))
	}
}

// parse fills in what Data says, as far as it goes.
func (p *Packet) parse() {
	const ethernet = 14
	if len(p.Data) < ethernet {
		return
	}
	p.EtherType = binary.BigEndian.Uint16(p.Data[12:])
	p.Payload = p.Data[ethernet:]
	switch p.EtherType {
	case EtherTypeIPv4:
		p.parseIPv4(p.Payload)
	case EtherTypeIPv6:
		p.parseIPv6(p.Payload)
	}
}

// parseIPv4 follows RFC 791 section 3.1.
func (p *Packet) parseIPv4(b []byte) {
	if len(b) < 20 {
		return
	}
	header := int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 { // more than 64 KiB of one "big TCP" segment
		total = len(b)
	}
	if header < 20 || total < header || total > len(b) {
		return
	}
	p.Proto = b[9]
	p.setAddrs(b[12:16], b[16:20])
	p.Payload = b[header:total]
	if binary.BigEndian.Uint16(b[6:])&0x1fff == 0 {
		p.parseTransport()
	}
}

// parseIPv6 follows RFC 8200 sections 3 and 4.
func (p *Packet) parseIPv6(b []byte) {
	if len(b) < 40 {
		return
	}
	next, rest := b[6], b[40:]
	if n := int(binary.BigEndian.Uint16(b[4:])); n > 0 && n <= len(rest) {
		rest = rest[:n]
	}
	p.setAddrs(b[8:24], b[24:40])
	first := true
	for {
		var size int
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 {
				return
			}
			size = 8 + int(rest[1])*8
		case 44: // fragment
			if len(rest) < 8 {
				return
			}
			size = 8
			first = binary.BigEndian.Uint16(rest[2:])&0xfff8 == 0
		default:
			p.Proto, p.Payload = next, rest
			if first {
				p.parseTransport()
			}
			return
		}
		if len(rest) < size {
			return
		}
		next, rest = rest[0], rest[size:]
	}
}

func (p *Packet) setAddrs(src, dst []byte) {
	s, _ := netip.AddrFromSlice(src)
	d, _ := netip.AddrFromSlice(dst)
	p.Src, p.Dst = netip.AddrPortFrom(s, 0), netip.AddrPortFrom(d, 0)
}

// parseTransport reads the TCP or UDP header at the start of Payload.
func (p *Packet) parseTransport() {
	b := p.Payload
	if (p.Proto != ProtoTCP && p.Proto != ProtoUDP) || len(b) < 8 {
		return
	}
	p.Src = netip.AddrPortFrom(p.Src.Addr(), binary.BigEndian.Uint16(b))
	p.Dst = netip.AddrPortFrom(p.Dst.Addr(), binary.BigEndian.Uint16(b[2:]))
	if p.Proto == ProtoUDP {
		p.Payload = b[8:]
		return
	}
	if len(b) < 20 {
		return
	}
	header := int(b[12]>>4) * 4
	if header < 20 || header > len(b) {
		return
	}
	flags := b[13]
	p.TCP = &TCPHeader{
		Seq: binary.BigEndian.Uint32(b[4:]), Ack: binary.BigEndian.Uint32(b[8:]),
		FIN: flags&1 != 0, SYN: flags&2 != 0, RST: flags&4 != 0, PSH: flags&8 != 0, ACK: flags&16 != 0,
	}
	p.Payload = b[header:]
}
