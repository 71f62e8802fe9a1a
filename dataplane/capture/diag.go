// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/bpf/redirect"
	"github.com/ztunnel-go/ztunnel/internal/netns"
)

// A tcpSocket is what inet_diag says of one.
type tcpSocket struct {
	state         uint8
	local, remote netip.AddrPort
	mark          uint32
	role          uint32 // of package redirect's socket storage; 0: none
	cookie        uint64
	id            [48]byte // struct inet_diag_sockid, to name it by
	family        uint8
}

// States of include/net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpTimeWait    = 6
	tcpListen      = 10
)

// Of linux/inet_diag.h and linux/sock_diag.h.
const (
	diagRequestLen = 56 // struct inet_diag_req_v2
	diagMessageLen = 72 // struct inet_diag_msg
	diagIDOffset   = 4  // of struct inet_diag_sockid in inet_diag_msg
	diagCookie     = 40 // of idiag_cookie in it

	attrMark             = 15 // INET_DIAG_MARK
	attrStorages         = 20 // INET_DIAG_SK_BPF_STORAGES
	attrRequestStorages  = 2  // INET_DIAG_REQ_SK_BPF_STORAGES
	attrStorageMapFD     = 1  // SK_DIAG_BPF_STORAGE_REQ_MAP_FD
	attrStorageMapValue  = 3  // SK_DIAG_BPF_STORAGE_MAP_VALUE
	sockDestroy          = 21 // SOCK_DESTROY
	everyState           = 0xffffffff
	roleOwn, roleConfine = 1, 2 // enum role of redirect.c
	rolePassive          = 3
	roleListener         = redirect.RoleListener
)

// rawMessage is netlink data that is already serialised.
type rawMessage []byte

func (m rawMessage) Len() int          { return len(m) }
func (m rawMessage) Serialize() []byte { return m }

func diagRequest(family uint8, states uint32, id []byte) rawMessage {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], states)
	copy(b[8:], id)
	return b
}

// tcpSockets lists the TCP sockets of a namespace in the given states (a bit
// each). storage is the descriptor of the map of roles; negative: there is none.
func tcpSockets(ns *netns.NS, states uint32, storage int) ([]tcpSocket, error) {
	var all []tcpSocket
	err := ns.Do(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			req.AddData(diagRequest(family, states, nil))
			if storage >= 0 {
				attr := nl.NewRtAttr(attrRequestStorages|unix.NLA_F_NESTED, nil)
				attr.AddRtAttr(attrStorageMapFD, nl.Uint32Attr(uint32(storage)))
				req.AddData(attr)
			}
			err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
				if s, ok := parseSocket(msg); ok {
					all = append(all, s)
				}
				return true
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	return all, nil
}

// parseSocket reads one struct inet_diag_msg with its attributes; false: it is
// cut short.
func parseSocket(msg []byte) (tcpSocket, bool) {
	if len(msg) < diagMessageLen {
		return tcpSocket{}, false
	}
	s := tcpSocket{family: msg[0], state: msg[1]}
	copy(s.id[:], msg[diagIDOffset:])
	address := func(b []byte) netip.Addr {
		if s.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b))
		}
		return netip.AddrFrom16([16]byte(b)).Unmap()
	}
	s.local = netip.AddrPortFrom(address(s.id[4:20]), binary.BigEndian.Uint16(s.id[0:]))
	s.remote = netip.AddrPortFrom(address(s.id[20:36]), binary.BigEndian.Uint16(s.id[2:]))
	s.cookie = uint64(binary.NativeEndian.Uint32(s.id[diagCookie:])) |
		uint64(binary.NativeEndian.Uint32(s.id[diagCookie+4:]))<<32
	eachAttr(msg[diagMessageLen:], func(kind uint16, value []byte) {
		switch {
		case kind == attrMark && len(value) >= 4:
			s.mark = binary.NativeEndian.Uint32(value)
		case kind == attrStorages:
			s.role = storedRole(value)
		}
	})
	return s, true
}

// storedRole digs the value of the one map that was asked for out of its nests.
func storedRole(nest []byte) (role uint32) {
	eachAttr(nest, func(_ uint16, storage []byte) {
		eachAttr(storage, func(kind uint16, value []byte) {
			if kind == attrStorageMapValue && len(value) >= 4 {
				role = binary.NativeEndian.Uint32(value)
			}
		})
	})
	return role
}

// eachAttr walks netlink attributes; what is cut short ends the walk.
func eachAttr(b []byte, fn func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		fn(binary.NativeEndian.Uint16(b[2:])&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// destroy ends the sockets with a reset (SOCK_DESTROY). errCannotDestroy means
// that some are still there.
func destroy(ns *netns.NS, sockets []tcpSocket) error {
	if len(sockets) == 0 {
		return nil
	}
	return ns.Do(func() error {
		var left error
		for _, s := range sockets {
			req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
			req.AddData(diagRequest(s.family, everyState, s.id[:]))
			_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
			// A socket in TIME_WAIT has nothing left to say.
			if err != nil && !errors.Is(err, unix.ENOENT) && s.state != tcpTimeWait {
				left = fmt.Errorf("%w: %v -> %v: %v", errCannotDestroy, s.local, s.remote, err)
			}
		}
		return left
	})
}

var errCannotDestroy = errors.New("socket cannot be destroyed")

// tcpInUse is how many TCP sockets a namespace has, those of closed connections
// (TIME_WAIT) left out. Unlike tcpSockets it does not walk the machine's tables.
func tcpInUse(ns *netns.NS) (total int, err error) {
	err = ns.Do(func() error {
		for _, file := range []struct{ name, protocol string }{{"sockstat", "TCP: inuse "}, {"sockstat6", "TCP6: inuse "}} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file.name)
			if errors.Is(err, os.ErrNotExist) && file.name == "sockstat6" {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
			_, rest, ok := strings.Cut(string(text), file.protocol)
			var n int
			if _, err := fmt.Sscan(rest, &n); !ok || err != nil {
				return fmt.Errorf("%s has no %q: %w", file.name, file.protocol, err)
			}
			total += n
		}
		return nil
	})
	return total, err
}
