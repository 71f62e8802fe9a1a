// SPDX-License-Identifier: Apache-2.0

package mesh

import "slices"

/* How the indexes are made
 *
 * A trie is a tree of sixteen-way branches, found by four bits of a hash after
 * the other, whose leaves hold up to leafSize items side by side. It is never
 * changed once it has been published: an edit copies the leaf and the branches
 * above it, and shares the rest with what readers hold. A copy belongs to the
 * edit that made it, so the next change of the same edit works in place, and a
 * push of everything costs hardly more than filling a plain map.
 *
 *	root [0 1 2 ... f]
 *	      |     |
 *	    leaf  [0 1 ... f]          leaf: hash value, hash value, ...
 *	               |
 *	             leaf
 *
 * Keys are not stored: they are in the values. Values of equal keys, as of
 * workloads with one address, are several items, in order of insertion.
 */

const (
	levelBits = 4
	fanout    = 1 << levelBits
	hashBits  = 32

	// leafSize is a compromise: what a change copies grows with it, and the
	// share of nodes in the memory shrinks.
	leafSize = 32
)

// An edit is the number of an Apply; nodes that bear it are not published yet.
type edit uint64

type trie[V any] struct {
	root *node[V]
	size int // items
}

// A node is a branch if kids is set, and otherwise a leaf.
type node[V any] struct {
	owner edit
	kids  *[fanout]*node[V]
	items []item[V]
}

type item[V any] struct {
	hash  uint32
	value V
}

func digit(hash uint32, shift int) int { return int(hash>>shift) & (fanout - 1) }

// near is the leaf where items of a hash are, among others: the caller compares
// hashes and then keys.
func (t *trie[V]) near(hash uint32) []item[V] {
	n := t.root
	for shift := 0; n != nil; shift += levelBits {
		if n.kids == nil {
			return n.items
		}
		n = n.kids[digit(hash, shift)]
	}
	return nil
}

// all calls yield for each value until it returns false, and returns whether
// it never did. The order depends on the hashes and the history of a leaf, so
// it is the same from call to call.
func (t *trie[V]) all(yield func(V) bool) bool { return t.root.all(yield) }

func (n *node[V]) all(yield func(V) bool) bool {
	switch {
	case n == nil:
	case n.kids != nil:
		for _, kid := range n.kids {
			if !kid.all(yield) {
				return false
			}
		}
	default:
		for i := range n.items {
			if !yield(n.items[i].value) {
				return false
			}
		}
	}
	return true
}

// add puts a value behind those that are there.
func (t *trie[V]) add(e edit, hash uint32, value V) {
	t.root = t.root.add(e, item[V]{hash, value}, 0)
	t.size++
}

func (n *node[V]) add(e edit, it item[V], shift int) *node[V] {
	switch {
	case n == nil:
		return &node[V]{owner: e, items: []item[V]{it}}
	case n.kids != nil:
		n = n.own(e)
		kid := &n.kids[digit(it.hash, shift)]
		*kid = (*kid).add(e, it, shift+levelBits)
		return n
	case len(n.items) < leafSize || shift >= hashBits:
		return n.append(e, it)
	}
	branch := &node[V]{owner: e, kids: new([fanout]*node[V])}
	for _, old := range n.items {
		kid := &branch.kids[digit(old.hash, shift)]
		*kid = (*kid).add(e, old, shift+levelBits)
	}
	return branch.add(e, it, shift)
}

// append grows a leaf by a quarter, or by nothing if it is copied anyway: a
// change that comes alone leaves no slack behind.
func (n *node[V]) append(e edit, it item[V]) *node[V] {
	if n.owner == e && len(n.items) < cap(n.items) {
		n.items = append(n.items, it)
		return n
	}
	room := len(n.items) + 1
	if n.owner == e {
		room += len(n.items) / 4
	}
	items := make([]item[V], len(n.items), room)
	copy(items, n.items)
	return &node[V]{owner: e, items: append(items, it)}
}

// own is n, or its copy if n is published.
func (n *node[V]) own(e edit) *node[V] {
	if n.owner == e {
		return n
	}
	mine := &node[V]{owner: e}
	if n.kids != nil {
		kids := *n.kids
		mine.kids = &kids
	} else {
		mine.items = slices.Clone(n.items)
	}
	return mine
}

// change puts another value into the place of the first that matches.
func (t *trie[V]) change(e edit, hash uint32, match func(V) bool, value V) bool {
	found := slices.ContainsFunc(t.near(hash), func(it item[V]) bool { return it.hash == hash && match(it.value) })
	if !found {
		return false
	}
	place := &t.root
	for shift := 0; ; shift += levelBits {
		*place = (*place).own(e)
		if (*place).kids == nil {
			break
		}
		place = &(*place).kids[digit(hash, shift)]
	}
	items := (*place).items
	i := slices.IndexFunc(items, func(it item[V]) bool { return it.hash == hash && match(it.value) })
	items[i].value = value
	return true
}

// remove takes all values out that match and returns whether there were any.
func (t *trie[V]) remove(e edit, hash uint32, match func(V) bool) bool {
	goes := func(it item[V]) bool { return it.hash == hash && match(it.value) }
	count := 0
	for _, it := range t.near(hash) {
		if goes(it) {
			count++
		}
	}
	if count == 0 {
		return false
	}
	t.root = t.root.remove(e, hash, goes, 0)
	t.size -= count
	return true
}

func (n *node[V]) remove(e edit, hash uint32, goes func(item[V]) bool, shift int) *node[V] {
	n = n.own(e)
	if n.kids == nil {
		n.items = slices.DeleteFunc(n.items, goes)
		if len(n.items) == 0 {
			return nil
		}
		return n
	}
	kid := &n.kids[digit(hash, shift)]
	*kid = (*kid).remove(e, hash, goes, shift+levelBits)
	if *kid == nil || len((*kid).items) == 1 {
		return n.shrink(e)
	}
	return n
}

// shrink makes a branch a leaf when little is left below it, so that an index
// that has shrunk takes the room of a small one.
func (n *node[V]) shrink(e edit) *node[V] {
	left := 0
	for _, kid := range n.kids {
		if kid == nil {
			continue
		}
		if left += len(kid.items); kid.kids != nil || left > leafSize/4 {
			return n
		}
	}
	if left == 0 {
		return nil
	}
	items := make([]item[V], 0, left)
	for _, kid := range n.kids {
		if kid != nil {
			items = append(items, kid.items...)
		}
	}
	return &node[V]{owner: e, items: items}
}
