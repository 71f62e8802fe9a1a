// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net/netip"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/mesh"
)

// Forwarded is the value of the forwarded header of a CONNECT request: the
// client, and the service it meant if that is known (contract 4.5).
func Forwarded(src netip.AddrPort, svc *mesh.Service) string {
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	value := `for="` + src.String() + `"`
	if svc != nil {
		value += ";host=" + svc.Hostname
	}
	return value
}

// ForwardedHost reads the host out of a forwarded header, or returns the empty
// string (contract 12.4).
func ForwardedHost(header string) string {
	for i := range len(header) {
		if header[i] >= 0x80 {
			return ""
		}
	}
	for part := range strings.SplitSeq(header, ";") {
		if host, ok := strings.CutPrefix(strings.TrimSpace(part), "host="); ok {
			if len(host) >= 2 && host[0] == '"' && host[len(host)-1] == '"' {
				host = host[1 : len(host)-1]
			}
			return host
		}
	}
	return ""
}
