// SPDX-License-Identifier: Apache-2.0

package certs

import "container/heap"

// A queue is a heap of entries that know where they stand in it, so that any
// of them can be moved or taken out. The manager's lock guards it.
type queue struct{ heap entryHeap }

// dueFirst is the order of those whose time has not come.
func dueFirst(a, b *entry) bool { return a.due.Before(b.due) }

// urgentFirst is the order of those whose time has come (contract 7.5).
func urgentFirst(a, b *entry) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	if !a.due.Equal(b.due) {
		return a.due.Before(b.due)
	}
	return a.order < b.order
}

func (q *queue) len() int     { return len(q.heap.entries) }
func (q *queue) head() *entry { return q.heap.entries[0] }

func (q *queue) push(e *entry) {
	e.in = q
	heap.Push(&q.heap, e)
}

func (q *queue) remove(e *entry) {
	heap.Remove(&q.heap, e.index)
	e.in = nil
}

func (q *queue) fix(e *entry) { heap.Fix(&q.heap, e.index) }

type entryHeap struct {
	before  func(a, b *entry) bool
	entries []*entry
}

func (h *entryHeap) Len() int           { return len(h.entries) }
func (h *entryHeap) Less(i, j int) bool { return h.before(h.entries[i], h.entries[j]) }

func (h *entryHeap) Swap(i, j int) {
	h.entries[i], h.entries[j] = h.entries[j], h.entries[i]
	h.entries[i].index, h.entries[j].index = i, j
}

func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(h.entries)
	h.entries = append(h.entries, e)
}

func (h *entryHeap) Pop() any {
	last := len(h.entries) - 1
	e := h.entries[last]
	h.entries[last] = nil // so that a forgotten entry's key does not linger in memory
	h.entries = h.entries[:last]
	return e
}
