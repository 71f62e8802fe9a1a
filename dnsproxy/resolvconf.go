// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A ResolvConf is what a resolv.conf(5) file says.
type ResolvConf struct {
	Nameservers []netip.AddrPort // in the order of the file; never empty
	Search      []string         // lower case, without a dot at the end
	Ndots       int              // default 1; at most 15
	Timeout     time.Duration    // of one attempt; default 5 s, 1 s to 30 s
	Attempts    int              // default 2, 1 to 5
	EDNS        bool             // queries carry an OPT record
	UseTCP      bool             // option use-vc: no UDP
}

// Upstream is whom and how to ask, as the file says.
func (c ResolvConf) Upstream() Upstream {
	return Upstream{
		Nameservers: c.Nameservers,
		Timeout:     c.Timeout,
		Attempts:    c.Attempts,
		EDNS:        c.EDNS,
		UseTCP:      c.UseTCP,
	}
}

// defaultResolvConf holds the defaults of resolv.conf(5), which are the
// contract's too (11.7).
func defaultResolvConf() ResolvConf {
	return ResolvConf{Ndots: 1, Timeout: 5 * time.Second, Attempts: 2}
}

// ErrNoNameservers says that a resolv.conf names nobody to ask.
var ErrNoNameservers = errors.New("no nameserver line: there is nobody to forward queries to")

// ParseResolvConf reads the format of resolv.conf(5). As in the C library,
// directives and options that it does not know are ignored, and numbers
// beyond a limit count as that limit; what it knows but cannot read is an
// error that names the line. A file without nameservers is refused with
// [ErrNoNameservers]: the C library would ask localhost, which in a pod is
// this proxy.
//
// Beyond the C library it takes the form [address]:port of OpenBSD.
func ParseResolvConf(r io.Reader) (ResolvConf, error) {
	c := defaultResolvConf()
	lines := bufio.NewScanner(r)
	n := 0
	for lines.Scan() {
		n++
		if err := c.line(fields(lines.Text())); err != nil {
			return ResolvConf{}, fmt.Errorf("resolv.conf line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return ResolvConf{}, fmt.Errorf("resolv.conf line %d: %w", n+1, err)
	}
	if len(c.Nameservers) == 0 {
		return ResolvConf{}, fmt.Errorf("resolv.conf: %w", ErrNoNameservers)
	}
	return c, nil
}

// fields splits a line into words and drops its comment.
func fields(line string) []string {
	words := strings.Fields(line)
	for i, w := range words {
		if w[0] == '#' || w[0] == ';' {
			return words[:i]
		}
	}
	return words
}

func (c *ResolvConf) line(words []string) error {
	if len(words) == 0 {
		return nil
	}
	directive, args := words[0], words[1:]
	switch directive {
	case "nameserver":
		if len(args) == 0 {
			return errors.New("nameserver without an address")
		}
		server, err := parseNameserver(args[0])
		if err != nil {
			return err
		}
		c.Nameservers = append(c.Nameservers, server)
	case "search", "domain": // the last of either counts
		if directive == "domain" && len(args) > 1 {
			args = args[:1]
		}
		c.Search = nil
		for _, domain := range args {
			if domain = strings.ToLower(strings.Trim(domain, ".")); domain != "" {
				c.Search = append(c.Search, domain)
			}
		}
	case "options":
		for _, o := range args {
			if err := c.option(o); err != nil {
				return err
			}
		}
	}
	return nil
}

func parseNameserver(s string) (netip.AddrPort, error) {
	host, port := s, uint64(53)
	if inner, ok := strings.CutPrefix(s, "["); ok {
		var rest string
		host, rest, ok = strings.Cut(inner, "]")
		if digits, more := strings.CutPrefix(rest, ":"); ok && more {
			if n, err := strconv.ParseUint(digits, 10, 16); err == nil && n > 0 {
				port, rest = n, ""
			}
		}
		if !ok || rest != "" {
			return netip.AddrPort{}, fmt.Errorf("nameserver %q is not [address]:port", s)
		}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("nameserver %q is not an address", s)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

func (c *ResolvConf) option(o string) error {
	name, value, _ := strings.Cut(o, ":")
	switch name {
	case "ndots":
		return number(&c.Ndots, o, value, [2]int{0, 15})
	case "attempts":
		return number(&c.Attempts, o, value, [2]int{1, 5})
	case "timeout":
		var seconds int
		if err := number(&seconds, o, value, [2]int{1, 30}); err != nil {
			return err
		}
		c.Timeout = time.Duration(seconds) * time.Second
	case "edns0":
		c.EDNS = true
	case "use-vc":
		c.UseTCP = true
	}
	return nil
}

// number reads a decimal into dst, within limits as resolv.conf(5) has them.
func number(dst *int, option, value string, limits [2]int) error {
	n, err := strconv.Atoi(value)
	if errors.Is(err, strconv.ErrRange) && value[0] != '-' {
		n, err = limits[1], nil
	}
	if err != nil || n < 0 {
		return fmt.Errorf("option %q wants a number after its colon", option)
	}
	*dst = min(max(n, limits[0]), limits[1])
	return nil
}
