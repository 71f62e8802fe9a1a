// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2/hpack"
)

// TableSize is how much the peer's encoder may have in its table, in bytes:
// the value that holds unless SETTINGS say otherwise, and ours do not
// (contract 4.4).
const TableSize = 4096

// A Decoder is what has to be remembered between header blocks of a peer (RFC
// 7541, section 2.3.2). It is a value: whoever writes it down can go on with it
// elsewhere. The zero value is that of a new tunnel.
type Decoder struct {
	Table []Field // the dynamic table, the oldest entry first
	Size  int     // of Table, as RFC 7541, section 4.1, counts it
	Less  int     // by how much the peer has set its table below [TableSize]
}

// Errors of [Decoder.Decode]; any of them ends the tunnel, since the tables
// differ from then on.
var (
	errShort      = errors.New("ends within a field")
	errInteger    = errors.New("integer too large")
	errLateUpdate = errors.New("size of the table changed within a block")
)

// maxInteger bounds integers of a block: none of ours needs more, and nothing
// overflows.
const maxInteger = 1 << 30

// Decode reads a whole header block and hands its fields to emit, in order.
// After an error, which says what is wrong, d is of no more use.
func (d *Decoder) Decode(b []byte, emit func(Field)) error {
	for first := true; len(b) > 0; {
		var f Field
		var err error
		switch c := b[0]; {
		case c&0x80 != 0: // 6.1, indexed
			var i int
			if i, b, err = readInteger(b, 7); err == nil {
				f, err = d.at(i)
			}
		case c&0xc0 == 0x40: // 6.2.1, literal that enters the table
			if f, b, err = d.literal(b, 6); err == nil {
				d.enter(f)
			}
		case c&0xe0 == 0x20: // 6.3, size of the table
			if !first {
				return errLateUpdate
			}
			var n int
			if n, b, err = readInteger(b, 5); err == nil {
				err = d.resize(n)
			}
			if err != nil {
				return err
			}
			continue
		default: // 6.2.2 and 6.2.3, other literals
			f, b, err = d.literal(b, 4)
		}
		if err != nil {
			return err
		}
		first = false
		emit(f)
	}
	return nil
}

// at is the entry of an index: the static table from 1, then the dynamic one,
// the latest entry first.
func (d *Decoder) at(i int) (Field, error) {
	switch last := len(staticTable) + len(d.Table); {
	case i < 1 || i > last:
		return Field{}, fmt.Errorf("index %d of %d", i, last)
	case i <= len(staticTable):
		return staticTable[i-1], nil
	default:
		return d.Table[last-i], nil
	}
}

func (d *Decoder) literal(b []byte, prefix uint) (f Field, rest []byte, err error) {
	i, b, err := readInteger(b, prefix)
	if err != nil {
		return f, nil, err
	}
	if i == 0 {
		f.Name, b, err = readString(b)
	} else {
		f, err = d.at(i)
	}
	if err != nil {
		return f, nil, err
	}
	f.Value, b, err = readString(b)
	return f, b, err
}

func (f Field) size() int { return len(f.Name) + len(f.Value) + lineCost }

// enter puts f into the table; one that is larger than the table empties it.
func (d *Decoder) enter(f Field) {
	d.Table = append(d.Table, f)
	d.Size += f.size()
	d.evict()
}

func (d *Decoder) evict() {
	gone := 0
	for ; d.Size > TableSize-d.Less; gone++ {
		d.Size -= d.Table[gone].size()
	}
	if gone > 0 {
		left := copy(d.Table, d.Table[gone:])
		clear(d.Table[left:])
		d.Table = d.Table[:left]
	}
}

func (d *Decoder) resize(n int) error {
	if n > TableSize {
		return fmt.Errorf("table of %d bytes", n)
	}
	d.Less = TableSize - n
	d.evict()
	return nil
}

// readInteger is RFC 7541, section 5.1.
func readInteger(b []byte, prefix uint) (int, []byte, error) {
	if len(b) == 0 {
		return 0, nil, errShort
	}
	full := 1<<prefix - 1
	n := int(b[0]) & full
	b = b[1:]
	if n < full {
		return n, b, nil
	}
	for shift := 0; len(b) > 0; shift += 7 {
		c := b[0]
		b = b[1:]
		if shift > 56 {
			return 0, nil, errInteger
		}
		if n += int(c&0x7f) << shift; n > maxInteger || n < 0 {
			return 0, nil, errInteger
		}
		if c&0x80 == 0 {
			return n, b, nil
		}
	}
	return 0, nil, errShort
}

// readString is RFC 7541, section 5.2.
func readString(b []byte) (string, []byte, error) {
	if len(b) == 0 {
		return "", nil, errShort
	}
	huffman := b[0]&0x80 != 0
	n, b, err := readInteger(b, 7)
	if err != nil {
		return "", nil, err
	}
	if n > len(b) {
		return "", nil, errShort
	}
	if !huffman {
		return string(b[:n]), b[n:], nil
	}
	s, err := hpack.HuffmanDecodeToString(b[:n])
	return s, b[n:], err
}
