// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/rig"
)

// The places of every stage:
//
//	node1: a, c      pods in the mesh; c is in namespace "other"
//	node2: b         a pod in the mesh
//	       stranger  a pod that nobody has enrolled
//	outside          a machine that knows nothing of meshes, with the control
//	                 plane and a name server
func places() []string { return append(pods(), "node1", "node2", "outside") }

func pods() []string { return []string{"a", "b", "c", "stranger"} }

func nodes() []string { return []string{"node1", "node2"} }

func nodeOf(pod string) string {
	if pod == "a" || pod == "c" {
		return "node1"
	}
	return "node2"
}

func namespaceOf(pod string) string {
	if pod == "c" {
		return "other"
	}
	return "default"
}

// uidOf is what the control plane calls the workload of a pod.
func uidOf(pod string) string { return "lab//Pod/" + namespaceOf(pod) + "/" + pod }

const (
	trustDomain = "cluster.local"
	// echoPort is where an echo server runs in every pod and outside.
	echoPort = 7007
	// ControlPort is where the control plane listens on outside.
	ControlPort = 15012
)

// ErrUnsupported is what a stage returns for what it does not have; a scenario
// that meets it was not played.
var ErrUnsupported = errors.New("this stage has no such thing")

// A Stage has hosts and proxies to play scenarios on. Its methods may be called
// by several goroutines.
type Stage interface {
	// Addr is an address of a place; 6 asks for the IPv6 one.
	Addr(place string, six bool) (netip.Addr, error)
	// Dial connects as an application at place does. network is tcp or udp.
	Dial(ctx context.Context, place, network string, to netip.AddrPort) (net.Conn, error)
	// Listen listens for TCP at place.
	Listen(place, addr string) (net.Listener, error)
	// Namespace is what the node agent hands over of a pod. It stays the
	// stage's.
	Namespace(pod string) (*netns.NS, error)
	// Record keeps what passes a pod's link from now on.
	Record(pod string) (Recording, error)
	// Inside runs f where sockets that f makes are place's own. Only the
	// calling goroutine is there.
	Inside(place string, f func() error) error
	// Dir is a directory for sockets and files, with a short path.
	Dir() string
	// Start starts a proxy.
	Start(Start) (Proxy, error)
	// Control is where the control plane is to listen, as sockets inside
	// "outside" see it.
	Control() netip.AddrPort
	// Close ends all that is left.
	Close() error
}

// A Start says how a proxy is run.
type Start struct {
	Node string
	// Env is the whole environment, but for what the stage itself needs.
	Env map[string]string
	// Args follow the program's name.
	Args []string
}

// A Proxy is a process, or what stands in for one.
type Proxy interface {
	// Output is what it printed on standard output, and Errors on standard
	// error.
	Output() *rig.Output
	Errors() *rig.Output
	// Signal sends TERM, INT or KILL.
	Signal(name string) error
	// Wait waits for its end and returns the exit code.
	Wait(ctx context.Context) (int, error)
	// Close ends it without grace and removes what it has left.
	Close() error
}

// A Recording is what passed a link.
type Recording interface {
	// Contains says whether a packet had these bytes in it.
	Contains(b []byte) bool
	// Stop ends it. Later calls do nothing.
	Stop() error
}

// variable is {a}, {a6}, {uid:a}, {local:C} or {remote:C}.
var variable = regexp.MustCompile(`\{[a-z]+[0-9]*6?(:[A-Za-z0-9]+)?\}`)

// knownVariables puts something of the right form for each address.
func knownVariables() *strings.Replacer {
	var pairs []string
	for _, p := range places() {
		pairs = append(pairs, "{"+p+"}", "192.0.2.1", "{"+p+"6}", "2001:db8::1", "{uid:"+p+"}", "uid")
	}
	return strings.NewReplacer(pairs...)
}

// checkVariables refuses variables that there cannot be.
func checkVariables(text string) error {
	for _, v := range variable.FindAllString(text, -1) {
		kind, name, ok := strings.Cut(strings.Trim(v, "{}"), ":")
		if ok && (kind == "local" || kind == "remote" || kind == "uid" && slices.Contains(pods(), name)) {
			continue
		}
		if ok || !slices.Contains(places(), kind) && !slices.Contains(places(), strings.TrimSuffix(kind, "6")) {
			return fmt.Errorf("%s is no variable", v)
		}
	}
	return nil
}

// OutsideNames are what the name server outside knows.
func OutsideNames() map[string][]netip.Addr {
	ip := netip.MustParseAddr
	names := map[string][]netip.Addr{
		"www.outside.example":   {ip("192.0.2.80"), ip("2001:db8::80")},
		"only4.outside.example": {ip("192.0.2.81")},
	}
	for i := range 40 {
		names["many.outside.example"] = append(names["many.outside.example"], netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
	}
	return names
}
