// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"slices"

	"github.com/ztunnel-go/ztunnel/internal/identity"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// HBONEPort is where a workload that speaks HBONE takes tunnels (contract 2.1).
const HBONEPort = 15008

// A Query is one connection that wants to leave a pod.
type Query struct {
	Source   *mesh.Workload // the pod's own workload
	SourceIP netip.Addr     // the client's address, as the socket has it
	Network  string         // the network this node is in (NETWORK)
	Dst      netip.AddrPort // where the application was bound
	Explain  bool           // fill Outcome.Steps
	// OnDemand says that what is not in the view may only not have been asked
	// for (XDS_ON_DEMAND): the outcome may then be [Learn].
	OnDemand bool

	learned []string // what has been asked for since the first asking
	answers []answer // names that were looked up since the first asking
	picks   []choice // what was chosen then, so that it stays the same
	failed  []string // UIDs of endpoints that could not be reached
}

// An answer is what came of looking a hostname up.
type answer struct {
	hostname string
	addrs    []netip.Addr
	err      error
}

// A Kind says what to do with a connection.
type Kind uint8

const (
	Refuse       Kind = iota // close it; Err says why
	Direct                   // plain TCP to Dial
	Tunnel                   // HBONE to Dial, asking for Authority
	DoubleTunnel             // HBONE to Dial, and through it HBONE again to the far network
	Resolve                  // look the hostname in Resolve up, then ask again with Again
	Learn                    // have the control plane tell of the name in Learn, then ask again with Learned
)

// String is the kind's name for people; the first three that connect are the
// protocol names of the access log and the admin dump (contract 13.4).
func (k Kind) String() string {
	switch k {
	case Direct:
		return "TCP"
	case Tunnel:
		return "HBONE"
	case DoubleTunnel:
		return "DOUBLEHBONE"
	case Resolve:
		return "resolve"
	case Learn:
		return "learn"
	default:
		return "refuse"
	}
}

// An Outcome is the decision about one [Query]. Which fields are set depends on
// the Kind; NextHop and Service are nil where unknown, as for a destination
// outside the mesh.
type Outcome struct {
	Kind      Kind
	Dial      netip.AddrPort // Direct, Tunnel, DoubleTunnel: the TCP destination
	Authority string         // Tunnel, DoubleTunnel: what CONNECT asks for, in both tunnels
	NextHop   *mesh.Workload // the workload at Dial: an endpoint, a waypoint or a gateway
	Service   *mesh.Service  // the service the client meant

	Expect      []identity.ID // identities of which the peer must show one, in order (contract 3.2)
	InnerExpect []identity.ID // DoubleTunnel: the same for the inner tunnel; empty means nobody will do

	// Endpoints are the UIDs of those that the connection is a load for:
	// NextHop, and who was chosen on the way to it.
	Endpoints []string
	// Rivals says that NextHop is one of several endpoints that would do; if it
	// cannot be reached see Another.
	Rivals bool

	// Used are the names of the resources that the decision looked at, with
	// Query.OnDemand: what is not used may be let go.
	Used []string

	Resolve string // Resolve: the hostname to look up, both address families
	Learn   string // Learn: a resource name, or an alias of one (contract 8.7)
	Err     error  // Refuse: the text is the access log's (contract 14.6)

	Warnings []string // to be logged: parts of the mesh's state that were ignored
	Steps    []string // how the decision came about, if Query.Explain

	query Query
}

// Again is the query to ask once the name in o.Resolve has been looked up, with
// the addresses or the error. The choices made so far are kept, so that a
// connection waits for one name and not for another at each asking.
func (o Outcome) Again(addrs []netip.Addr, err error) Query {
	q := o.query
	q.answers = append(slices.Clone(q.answers), answer{o.Resolve, addrs, err})
	return q
}

// Learned is the query to ask once the control plane has spoken of the name in
// o.Learn, whatever it said. The name will not be wanted again.
func (o Outcome) Learned() Query {
	q := o.query
	q.learned = append(slices.Clone(q.learned), o.Learn)
	return q
}

// Another is the query to ask when NextHop could not be reached: for a way
// without that endpoint. What was chosen before it stays, such as the waypoint
// of which it was one. Without Rivals the answer is a refusal.
func (o Outcome) Another() Query {
	q := o.query
	if o.NextHop == nil {
		return q
	}
	uid := o.NextHop.UID
	q.failed = append(slices.Clone(q.failed), uid)
	if i := slices.IndexFunc(q.picks, func(c choice) bool { return c.uid == uid }); i >= 0 {
		q.picks = q.picks[:i]
	}
	return q
}

// A Candidate is one of several that would do.
type Candidate struct {
	// UID is the endpoint's. It is empty where weight alone counts: for
	// weighted waypoints and the addresses of a name.
	UID    string
	Weight uint32 // 0: not to be chosen
}

// A Chooser returns the index of a candidate, never one of weight zero, or -1
// for none.
type Chooser func([]Candidate) int

// Weighted makes a [Chooser] from a source of random numbers: random(n) is to
// be even over [0, n). Candidates are chosen in proportion to their weights,
// which is the reference's way (contract 3.4).
func Weighted(random func(n uint64) uint64) Chooser {
	return func(candidates []Candidate) int {
		var sum uint64
		for _, c := range candidates {
			sum += uint64(c.Weight)
		}
		if sum == 0 {
			return -1
		}
		at := random(sum)
		for i, c := range candidates {
			if at < uint64(c.Weight) {
				return i
			}
			at -= uint64(c.Weight)
		}
		return -1
	}
}
