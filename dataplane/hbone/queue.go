// SPDX-License-Identifier: Apache-2.0

package hbone

import "sync"

// chunkSize is one TLS record's worth of payload (RFC 8446, section 5.1).
const chunkSize = 16 << 10

// A chunk holds bytes that arrived and were not delivered yet.
type chunk struct {
	buf  [chunkSize]byte
	r, w int // the bytes are buf[r:w]
}

// chunks keeps chunks for reuse: while nothing is under way a stream has none.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

func getChunk() *chunk { return chunks.Get().(*chunk) }

func putChunk(k *chunk) {
	k.r, k.w = 0, 0
	chunks.Put(k)
}

// A queue is what one stream has received and not delivered, in order. It is
// bounded by the stream's window.
type queue struct {
	list []*chunk
	size int // bytes in list
}

// push takes k. Small pieces are copied behind the last chunk where they fit,
// so that a window full of tiny frames cannot hold many times its size.
func (q *queue) push(k *chunk) {
	q.size += k.w - k.r
	if n := len(q.list); n > 0 {
		if tail := q.list[n-1]; k.w-k.r <= chunkSize-tail.w {
			tail.w += copy(tail.buf[tail.w:], k.buf[k.r:k.w])
			putChunk(k)
			return
		}
	}
	q.list = append(q.list, k)
}

// pop returns the first chunk, which the caller gives back with putChunk, or
// nil.
func (q *queue) pop() *chunk {
	if len(q.list) == 0 {
		return nil
	}
	k := q.list[0]
	q.list[0] = nil
	q.list = q.list[1:]
	if len(q.list) == 0 {
		q.list = nil // an idle stream holds no array
	}
	q.size -= k.w - k.r
	return k
}

// read copies from the front of q.
func (q *queue) read(p []byte) (n int) {
	for n < len(p) && len(q.list) > 0 {
		k := q.list[0]
		m := copy(p[n:], k.buf[k.r:k.w])
		n, k.r, q.size = n+m, k.r+m, q.size-m
		if k.r == k.w {
			putChunk(q.pop())
		}
	}
	return n
}

// drop forgets everything and returns how many bytes that were.
func (q *queue) drop() int {
	n := q.size
	for k := q.pop(); k != nil; k = q.pop() {
		putChunk(k)
	}
	return n
}
