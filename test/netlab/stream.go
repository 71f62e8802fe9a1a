// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"net/netip"
	"slices"
)

// A Stream is one direction of one TCP connection.
type Stream struct {
	Src, Dst netip.AddrPort
	// Data is what was sent, in order and once.
	Data []byte
	// Hole reports that a segment is missing; Data ends before it.
	Hole bool
	// FIN and RST say how the stream ended, if it did.
	FIN, RST bool
}

// flow gathers the segments of a stream as they were seen.
type flow struct {
	stream   *Stream
	start    uint32
	segments []*Packet
}

// Streams puts TCP streams together from packets of one link, in the order of
// their SYNs. Segments may come out of order or twice, as they do when two
// processors send. Connections that were open before are left out.
func Streams(packets []*Packet) []*Stream {
	type pair struct{ src, dst netip.AddrPort }
	open := map[pair]*flow{}
	var flows []*flow
	for _, p := range packets {
		if p.TCP == nil {
			continue
		}
		key := pair{p.Src, p.Dst}
		f := open[key]
		if p.TCP.SYN && (f == nil || f.start != p.TCP.Seq+1) {
			f = &flow{stream: &Stream{Src: p.Src, Dst: p.Dst}, start: p.TCP.Seq + 1}
			open[key] = f
			flows = append(flows, f)
		}
		if f == nil || p.TCP.SYN {
			continue
		}
		f.segments = append(f.segments, p)
	}
	streams := make([]*Stream, len(flows))
	for i, f := range flows {
		f.assemble()
		streams[i] = f.stream
	}
	return streams
}

func (f *flow) assemble() {
	s := f.stream
	// Sequence numbers wrap; a stream longer than 2 GiB is not for us.
	at := func(p *Packet) int { return int(int32(p.TCP.Seq - f.start)) }
	slices.SortStableFunc(f.segments, func(a, b *Packet) int { return at(a) - at(b) })
	for _, p := range f.segments {
		s.FIN = s.FIN || p.TCP.FIN
		s.RST = s.RST || p.TCP.RST
		from, end := at(p), at(p)+len(p.Payload)
		switch {
		case len(p.Payload) == 0 || from < 0 || end <= len(s.Data): // nothing new, or a keepalive
		case from > len(s.Data):
			s.Hole = true
		case !s.Hole:
			s.Data = append(s.Data, p.Payload[len(s.Data)-from:]...)
		}
	}
}
