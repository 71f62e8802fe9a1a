// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A Packet is what the steering program is asked about. Zones are not looked at.
type Packet struct {
	From, To netip.AddrPort
	UDP      bool
	// Ifindex is the device it came by; for an address of the namespace's own
	// that is the device which owns the address, whatever it came by.
	Ifindex uint32
}

// A Verdict is its answer.
type Verdict struct {
	Drop bool
	// Socket is the cookie (SO_COOKIE) of the listener that was chosen; 0: the
	// kernel looks further itself.
	Socket uint64
}

// skLookup is struct bpf_sk_lookup.
type skLookup struct {
	Cookie         uint64
	Family         uint32
	Protocol       uint32
	RemoteIP4      [4]byte
	RemoteIP6      [16]byte
	RemotePort     [2]byte // network order
	_              [2]byte
	LocalIP4       [4]byte
	LocalIP6       [16]byte
	LocalPort      uint32 // host order
	IngressIfindex uint32
	_              [4]byte
}

// Ask runs a twin of the pod's program, on the same maps, on a packet that
// nobody sent (BPF_PROG_TEST_RUN). It changes nothing but counters. A twin,
// because a test run may not say by which device the packet came (bpf_prog_test_run_sk_lookup
// refuses anything behind local_port).
func (p *Pod) Ask(pkt Packet) (Verdict, error) {
	twin, err := p.twin(pkt.Ifindex)
	if err != nil {
		return Verdict{}, err
	}
	in := skLookup{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP,
		LocalPort: uint32(pkt.To.Port())}
	if pkt.UDP {
		in.Protocol = unix.IPPROTO_UDP
	}
	binary.BigEndian.PutUint16(in.RemotePort[:], pkt.From.Port())
	if pkt.To.Addr().Is4() {
		in.RemoteIP4, in.LocalIP4 = pkt.From.Addr().As4(), pkt.To.Addr().As4()
	} else {
		in.Family = unix.AF_INET6
		in.RemoteIP6, in.LocalIP6 = pkt.From.Addr().As16(), pkt.To.Addr().As16()
	}
	var out skLookup
	const skPass = 1
	ret, err := twin.Run(&ebpf.RunOptions{Context: in, ContextOut: &out})
	if err != nil {
		return Verdict{}, fmt.Errorf("ask about %v -> %v: %w", pkt.From, pkt.To, err)
	}
	return Verdict{Drop: ret != skPass, Socket: out.Cookie}, nil
}

// twin is the program that takes every packet to have come by a device.
func (p *Pod) twin(ifindex uint32) (*ebpf.Program, error) {
	if t := p.twins[ifindex]; t != nil {
		return t, nil
	}
	programs, err := p.loadPrograms(ifindex, redirectProgSteer)
	if err != nil {
		return nil, err
	}
	p.twins[ifindex] = programs[redirectProgSteer]
	return p.twins[ifindex], nil
}

func nativeWord(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// clearMap empties the pinned map of enrolled namespaces.
func clearMap(path string) error {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return fmt.Errorf("open pin %s: %w", path, err)
	}
	defer m.Close()
	keys, err := allKeys[uint64, uint64](m)
	if err != nil {
		return fmt.Errorf("read pin %s: %w", path, err)
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil {
			return fmt.Errorf("un-enroll namespace %d: %w", k, err)
		}
	}
	return nil
}

// allKeys are those of a hash map, read many at a time: with two calls for each,
// a node of hundreds of pods would spend most of its start here.
func allKeys[K, V any](m *ebpf.Map) ([]K, error) {
	const many = 1024 // more than any bucket has
	keys, values := make([]K, many), make([]V, many)
	var cursor ebpf.MapBatchCursor
	var all []K
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		all = append(all, keys[:n]...)
		if errors.Is(err, ebpf.ErrKeyNotExist) { // the end
			return all, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
