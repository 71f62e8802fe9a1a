// SPDX-License-Identifier: Apache-2.0

package engine

import "github.com/ztunnel-go/ztunnel/dataplane/reactor"

// A queue is what a stream has received and nobody has taken, in order. It is
// bounded by the stream's window. Its chunks are the lane's.
type queue struct {
	list []chunk
	size int // bytes in list
}

// A chunk holds the bytes b[r:w].
type chunk struct {
	b    []byte
	r, w int
}

// push copies b.
func (q *queue) push(slab *reactor.Slab, b []byte) {
	q.size += len(b)
	for len(b) > 0 {
		if n := len(q.list); n == 0 || q.list[n-1].w == chunkSize {
			q.list = append(q.list, chunk{b: slab.Get()})
		}
		tail := &q.list[len(q.list)-1]
		k := copy(tail.b[tail.w:], b)
		tail.w += k
		b = b[k:]
	}
}

// skip drops n bytes from the front.
func (q *queue) skip(slab *reactor.Slab, n int) {
	q.size -= n
	gone := 0
	for ; gone < len(q.list); gone++ {
		k := &q.list[gone]
		if n < k.w-k.r {
			k.r += n
			break
		}
		n -= k.w - k.r
		slab.Put(k.b)
		k.b = nil
	}
	if q.list = q.list[gone:]; len(q.list) == 0 {
		q.list = nil // a stream without bytes holds no array
	}
}

// read copies from the front.
func (q *queue) read(slab *reactor.Slab, p []byte) (n int) {
	for _, k := range q.list {
		n += copy(p[n:], k.b[k.r:k.w])
	}
	q.skip(slab, n)
	return n
}

// slices appends what there is to to.
func (q *queue) slices(to [][]byte) [][]byte {
	for _, k := range q.list {
		to = append(to, k.b[k.r:k.w])
	}
	return to
}

// drop forgets everything and returns how many bytes that were.
func (q *queue) drop(slab *reactor.Slab) int {
	n := q.size
	q.skip(slab, n)
	return n
}
