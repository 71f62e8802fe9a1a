// SPDX-License-Identifier: Apache-2.0

package mesh

import "slices"

// everywhere stands for a client that sees all services and prefers none. No
// namespace has this name: a slash may not be in one.
const everywhere = "/"

func sees(namespace string, svc *Service) bool {
	return namespace == everywhere || svc.VisibleTo(namespace)
}

// A choice keeps the best of the services that are offered to it, oldest
// first, for a client in namespace (contract 3.4).
type choice struct {
	namespace string
	service   *Service
	settled   bool
}

func (c *choice) offer(svc *Service) {
	switch {
	case c.settled || !sees(c.namespace, svc):
	case c.namespace != "" && svc.Namespace == c.namespace:
		c.service, c.settled = svc, true
	case c.service == nil, svc.Canonical: // the last canonical one wins
		c.service = svc
	}
}

func (s *state) serviceByVIP(addr NetworkAddr, namespace string) *Service {
	h := s.hashAddr(addr)
	best := choice{namespace: namespace}
	for _, it := range s.byVIP.near(h) {
		if it.hash == h && slices.Contains(it.value.VIPs, addr) {
			best.offer(it.value)
		}
	}
	if best.service != nil {
		return best.service
	}
	return s.bestRange(addr, namespace)
}

// bestRange looks into the ranges of each length that is in use. Those of one
// length that hold an address are one range, whose services stand in order of
// insertion.
func (s *state) bestRange(addr NetworkAddr, namespace string) *Service {
	if s.ranges.size == 0 || addr.Addr.Zone() != "" {
		return nil
	}
	var best *Service
	var bestRank rangeRank
	for length, used := range s.lengths.of(addr.Addr) {
		prefix, err := addr.Addr.Prefix(length)
		if used == 0 || err != nil {
			continue
		}
		key := NetworkPrefix{addr.Network, prefix}
		h := s.hashPrefix(key)
		for _, it := range s.ranges.near(h) {
			svc := it.value.service
			if it.hash != h || it.value.prefix != key || !sees(namespace, svc) {
				continue
			}
			rank := rangeRank{
				local:     namespace != "" && svc.Namespace == namespace,
				bits:      length,
				canonical: svc.Canonical,
			}
			if best == nil || rank.above(bestRank) { // the earliest of equals stays
				best, bestRank = svc, rank
			}
		}
	}
	return best
}

// A rangeRank says what makes one range better than another, the weightiest
// first (contract 3.4).
type rangeRank struct {
	local     bool // of the client's namespace
	bits      int
	canonical bool
}

func (r rangeRank) above(other rangeRank) bool {
	switch {
	case r.local != other.local:
		return r.local
	case r.bits != other.bits:
		return r.bits > other.bits
	default:
		return r.canonical && !other.canonical
	}
}
