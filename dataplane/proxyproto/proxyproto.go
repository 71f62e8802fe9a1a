// SPDX-License-Identifier: Apache-2.0

// Package proxyproto writes the header of the PROXY protocol, version 2, by
// which an application that takes all its connections at one port is told
// whose they are (contract 4.10).
//
//	bytes  what
//	12     signature
//	1      0x21: version 2, command PROXY
//	1      family and transport: 0x11 TCP over IPv4, 0x21 TCP over IPv6, 0x01 stream, no addresses
//	2      length of the rest, network order
//	12/36  source and destination address, source and destination port; absent with 0x01
//	3+n    TLV 0xD0: the client's identity, if it proved one
//
// It only writes: nobody sends such a header to a proxy. Imports
// internal/identity; imported by dataplane.
package proxyproto

import (
	"encoding/binary"
	"net/netip"

	"github.com/ztunnel-go/ztunnel/internal/identity"
)

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"

	versionCommand = 0x21
	tcp4           = 0x11
	tcp6           = 0x21
	streamOnly     = 0x01 // AF_UNSPEC, STREAM: the two addresses are of different families

	// tlvIdentity is the type under which Istio's waypoints look for the
	// client's SPIFFE id.
	tlvIdentity = 0xD0

	// maxIdentity keeps the header's length within its 16 bits. No certificate
	// authority issues such a name; a peer that shows one is told of as nobody.
	maxIdentity = 1<<16 - 1 - 36 - 3
)

// A Header says whose a connection is.
type Header struct {
	Source      netip.AddrPort // the peer of the tunnel
	Destination netip.AddrPort // what it asked for
	Identity    identity.ID    // zero: it proved none
}

// Append adds the header's bytes to b and returns the result.
func (h Header) Append(b []byte) []byte {
	b = append(b, signature...)
	src, dst := h.Source.Addr().Unmap(), h.Destination.Addr().Unmap()
	family := byte(streamOnly)
	switch {
	case src.Is4() && dst.Is4():
		family = tcp4
	case src.Is6() && dst.Is6():
		family = tcp6
	}
	b = append(b, versionCommand, family, 0, 0)
	length := len(b)
	if family != streamOnly {
		b = append(b, src.AsSlice()...)
		b = append(b, dst.AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, h.Source.Port())
		b = binary.BigEndian.AppendUint16(b, h.Destination.Port())
	}
	if id := h.Identity.String(); id != "" && len(id) <= maxIdentity {
		b = append(b, tlvIdentity)
		b = binary.BigEndian.AppendUint16(b, uint16(len(id)))
		b = append(b, id...)
	}
	binary.BigEndian.PutUint16(b[length-2:], uint16(len(b)-length))
	return b
}
