// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"sync"
)

// crowded is what the log says of a connection that is ended at once, because
// too many want a handshake.
const crowded = "too many connections without a finished handshake"

// A Gate bounds the connections of a node that have not proved who they are:
// each costs a descriptor, a goroutine and a key exchange, for as long as a
// handshake may take. The zero value lets everybody through; so does nil.
type Gate struct {
	All       int // at the same time; 0: any number
	PerSource int // of one address; 0: any number

	mu      sync.Mutex
	inside  int                // guarded by mu
	sources map[netip.Addr]int // guarded by mu
}

// enter lets a connection from src in, or not and says what there is too much
// of. leave must follow.
func (g *Gate) enter(src netip.Addr) (full string) {
	if g == nil {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.All > 0 && g.inside >= g.All:
		return "all"
	case g.PerSource > 0 && g.sources[src] >= g.PerSource:
		return "source"
	}
	if g.sources == nil {
		g.sources = map[netip.Addr]int{}
	}
	g.inside++
	g.sources[src]++
	return ""
}

func (g *Gate) leave(src netip.Addr) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.sources[src]--; g.sources[src] == 0 {
		delete(g.sources, src)
	}
}
