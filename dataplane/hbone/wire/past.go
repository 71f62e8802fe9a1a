// SPDX-License-Identifier: Apache-2.0

package wire

// A Past is what a server remembers of the latest streams of its peer: who
// closed them decides what a frame means that comes for one of them (RFC 9113,
// section 5.1). The zero value knows nothing, and says so.
//
// All methods take last, the highest stream id that the peer has opened.
type Past struct {
	ended   [pastStreams / 32]uint32
	skipped [pastStreams / 32]uint32
}

// pastStreams is how many streams are remembered, in one bit each of two
// kinds: more than twice those that may be open at once.
const pastStreams = 512

// A Fate is how a stream came to be closed.
type Fate uint8

const (
	// FateOurs is a stream that we closed, or one of which nothing is
	// remembered: its peer may not have known yet when it sent the frame.
	FateOurs Fate = iota
	// FateEnded is a stream whose peer ended it by END_STREAM or RST_STREAM,
	// and cannot but know.
	FateEnded
	// FateSkipped is a stream that was never opened, and cannot be any more
	// since a later one was (section 5.1.1).
	FateSkipped
)

// Open notes that the peer opens the stream id, which is beyond last.
func (p *Past) Open(last, id uint32) {
	first := (last + 1) | 1 // the next one that a client may open
	if id-first > 2*pastStreams {
		first = id - 2*pastStreams
	}
	for at := first; at < id; at += 2 {
		p.set(at, false, true)
	}
	p.set(id, false, false)
}

// End notes that the peer has ended the stream id.
func (p *Past) End(last, id uint32) {
	if remembered(last, id) {
		p.set(id, true, false)
	}
}

// Of tells how the stream id was closed, which is not beyond last and is not
// open.
func (p *Past) Of(last, id uint32) Fate {
	if !remembered(last, id) {
		return FateOurs
	}
	word, bit := place(id)
	switch {
	case p.ended[word]&bit != 0:
		return FateEnded
	case p.skipped[word]&bit != 0:
		return FateSkipped
	}
	return FateOurs
}

// remembered holds for the latest streams that a client may open.
func remembered(last, id uint32) bool {
	return id%2 == 1 && id <= last && last-id < 2*pastStreams
}

func place(id uint32) (word int, bit uint32) {
	n := id / 2 % pastStreams
	return int(n / 32), 1 << (n % 32)
}

func (p *Past) set(id uint32, ended, skipped bool) {
	word, bit := place(id)
	p.ended[word] &^= bit
	p.skipped[word] &^= bit
	if ended {
		p.ended[word] |= bit
	}
	if skipped {
		p.skipped[word] |= bit
	}
}
