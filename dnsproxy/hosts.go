// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Hosts is what an /etc/hosts file says: addresses by name. The nil value
// knows no name.
type Hosts struct {
	addrs map[string][]netip.Addr // by name in lower case, fully qualified
}

// ParseHosts reads the format of hosts(5). Lines that do not begin with an
// address are ignored, as everybody does who reads that file; the error is
// that of r.
func ParseHosts(r io.Reader) (Hosts, error) {
	h := Hosts{addrs: map[string][]netip.Addr{}}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(words[0])
		if err != nil {
			continue
		}
		for _, name := range words[1:] {
			key := dns.CanonicalName(name)
			h.addrs[key] = append(h.addrs[key], addr.Unmap().WithZone(""))
		}
	}
	if err := lines.Err(); err != nil {
		return Hosts{}, fmt.Errorf("read hosts: %w", err)
	}
	return h, nil
}

// lookup lists the addresses of one family that a fully qualified lower-case
// name has.
func (h Hosts) lookup(name string, v6 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range h.addrs[name] {
		if isV6(a) == v6 {
			out = append(out, a)
		}
	}
	return out
}
