// SPDX-License-Identifier: Apache-2.0

package live

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// A Snapshot is the table at one moment, the oldest connection first. It has
// one entry to a connection: the dump, which wants a set (contract 13.4),
// drops what is equal in the fields it shows. As JSON it is what /debug/live
// has of a pod.
type Snapshot struct {
	Inbound  []InboundInfo  `json:"inbound"`
	Outbound []OutboundInfo `json:"outbound"`
}

// InboundInfo is what the admin page shows of a connection to the pod.
type InboundInfo struct {
	Src       netip.AddrPort `json:"src"`
	ActualDst netip.AddrPort `json:"actualDst"`
	Service   string         `json:"service,omitempty"` // the host that the client named; empty: none
	Protocol  Protocol       `json:"protocol"`          // HBONE iff the peer has proved an identity, else TCP
	// Identity is the one that the peer has proved; empty: none.
	Identity string    `json:"identity,omitempty"`
	Opened   time.Time `json:"opened"`
}

// OutboundInfo is what the admin page shows of a connection from the pod.
type OutboundInfo struct {
	Outbound
	Opened time.Time `json:"opened"`
}

// Snapshot lists what is open.
func (t *Table) Snapshot() Snapshot {
	var s Snapshot
	for _, e := range t.entries(true) {
		if e.out != nil {
			s.Outbound = append(s.Outbound, OutboundInfo{*e.out, e.since()})
			continue
		}
		info := InboundInfo{Src: e.in.Src, ActualDst: e.in.Dst, Service: e.in.Service, Protocol: TCP, Opened: e.since()}
		if !e.in.Source.IsZero() {
			info.Protocol, info.Identity = HBONE, e.in.Source.String()
		}
		s.Inbound = append(s.Inbound, info)
	}
	slices.SortFunc(s.Inbound, func(a, b InboundInfo) int {
		return cmp.Or(a.Opened.Compare(b.Opened), a.Src.Compare(b.Src), a.ActualDst.Compare(b.ActualDst))
	})
	slices.SortFunc(s.Outbound, func(a, b OutboundInfo) int {
		return cmp.Or(a.Opened.Compare(b.Opened), a.Src.Compare(b.Src), a.ActualDst.Compare(b.ActualDst))
	})
	return s
}
