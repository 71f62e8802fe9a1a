// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"time"

	"golang.org/x/net/http2"
)

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

const (
	// initialWindow and minFrameSize hold until SETTINGS say otherwise (RFC
	// 9113, section 6.5.2).
	initialWindow = 65535
	minFrameSize  = 16384
	maxFrameSize  = 1<<24 - 1
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1

	// clientStreams is how many streams we open on a tunnel before the peer
	// has said how many it takes (contract 4.4, 4.7).
	clientStreams = 100
)

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

func (s Settings) withDefaults(client bool) Settings {
	s.StreamWindow = min(or(s.StreamWindow, 4<<20), maxWindow)
	s.ConnWindow = min(max(or(s.ConnWindow, 16<<20), initialWindow), maxWindow)
	s.MaxFrameSize = min(max(or(s.MaxFrameSize, 1<<20), minFrameSize), maxFrameSize)
	list := uint32(64 << 10)
	if client {
		list = 16 << 10
	}
	s.MaxHeaderList = or(s.MaxHeaderList, list)
	s.MaxStreams = or(s.MaxStreams, 200)
	s.PingInterval = or(s.PingInterval, 10*time.Second)
	s.PingTimeout = or(s.PingTimeout, 20*time.Second)
	s.HandshakeTimeout = or(s.HandshakeTimeout, 10*time.Second)
	return s
}

// wire is the SETTINGS frame of contract 4.4, in its order.
func (s Settings) wire(client bool) []http2.Setting {
	first := http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: s.MaxStreams}
	if client {
		first = http2.Setting{ID: http2.SettingEnablePush, Val: 0}
	}
	return []http2.Setting{
		first,
		{ID: http2.SettingInitialWindowSize, Val: s.StreamWindow},
		{ID: http2.SettingMaxFrameSize, Val: s.MaxFrameSize},
		{ID: http2.SettingMaxHeaderListSize, Val: s.MaxHeaderList},
	}
}
