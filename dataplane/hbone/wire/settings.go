// SPDX-License-Identifier: Apache-2.0

package wire

import "time"

// Settings are what a side announces and how patient it is. The zero value of
// each field is contract 4.4's value, which is what peers know from ztunnel.
type Settings struct {
	StreamWindow     uint32        // bytes a peer may have under way on one stream; 0: 4 MiB
	ConnWindow       uint32        // and on all streams of a tunnel; 0: 16 MiB, at least 65535
	MaxFrameSize     uint32        // bytes in a frame that we accept; 0: 1 MiB, at least 16384
	MaxHeaderList    uint32        // bytes in a header list that we accept; 0: 16 KiB from servers, 64 KiB from clients
	MaxStreams       uint32        // streams that a client may have open at our server; 0: 200
	PingInterval     time.Duration // from a pong to the next ping; 0: 10 s
	PingTimeout      time.Duration // from a ping to the loss of the tunnel; 0: 20 s
	HandshakeTimeout time.Duration // for TLS and, again, for the peer's first SETTINGS; 0: 10 s
}

// Bounds of the protocol. InitialWindow and MinFrameSize hold until SETTINGS
// say otherwise (RFC 9113, section 6.5.2).
const (
	InitialWindow = 65535
	MinFrameSize  = 16384
	MaxFrameSize  = 1<<24 - 1
	MaxWindow     = 1<<31 - 1
	MaxStreamID   = 1<<31 - 1
)

// ClientStreams is how many streams we open on a tunnel before the peer has
// said how many it takes (contract 4.4, 4.7).
const ClientStreams = 100

// A Setting is one of those a SETTINGS frame carries.
type Setting struct {
	ID  uint16
	Val uint32
}

// The settings that we know (RFC 9113, section 6.5.2).
const (
	SettingTable      = 0x1
	SettingPush       = 0x2
	SettingMaxStreams = 0x3
	SettingWindow     = 0x4
	SettingFrameSize  = 0x5
	SettingHeaderList = 0x6
)

// Or is v, or fallback if v is zero.
func Or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// WithDefaults fills in what is zero, for a client or a server.
func (s Settings) WithDefaults(client bool) Settings {
	s.StreamWindow = min(Or(s.StreamWindow, 4<<20), MaxWindow)
	s.ConnWindow = min(max(Or(s.ConnWindow, 16<<20), InitialWindow), MaxWindow)
	s.MaxFrameSize = min(max(Or(s.MaxFrameSize, 1<<20), MinFrameSize), MaxFrameSize)
	list := uint32(64 << 10)
	if client {
		list = 16 << 10
	}
	s.MaxHeaderList = Or(s.MaxHeaderList, list)
	s.MaxStreams = Or(s.MaxStreams, 200)
	s.PingInterval = Or(s.PingInterval, 10*time.Second)
	s.PingTimeout = Or(s.PingTimeout, 20*time.Second)
	s.HandshakeTimeout = Or(s.HandshakeTimeout, 10*time.Second)
	return s
}

// Wire is the SETTINGS frame of contract 4.4, in its order.
func (s Settings) Wire(client bool) []Setting {
	first := Setting{ID: SettingMaxStreams, Val: s.MaxStreams}
	if client {
		first = Setting{ID: SettingPush, Val: 0}
	}
	return []Setting{
		first,
		{ID: SettingWindow, Val: s.StreamWindow},
		{ID: SettingFrameSize, Val: s.MaxFrameSize},
		{ID: SettingHeaderList, Val: s.MaxHeaderList},
	}
}
