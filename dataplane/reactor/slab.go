// SPDX-License-Identifier: Apache-2.0

package reactor

// A Slab keeps buffers of one size for reuse. It belongs to one loop.
type Slab struct {
	Size int // of each buffer, in bytes
	Keep int // how many are kept at most
	free [][]byte
}

// Get returns a buffer of s.Size bytes with any content.
func (s *Slab) Get() []byte {
	if n := len(s.free); n > 0 {
		b := s.free[n-1]
		s.free[n-1] = nil
		s.free = s.free[:n-1]
		return b
	}
	return make([]byte, s.Size)
}

// Put takes back what Get gave, whole.
func (s *Slab) Put(b []byte) {
	if cap(b) == s.Size && len(s.free) < s.Keep {
		s.free = append(s.free, b[:s.Size])
	}
}
