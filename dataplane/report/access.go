// SPDX-License-Identifier: Apache-2.0

package report

import (
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/logs"
)

// lineAttrs is the number of attributes of the longest access line.
const lineAttrs = 17

// attrs are the fields that both lines of a connection share, in the order of
// contract 14.4. What is not known is left out.
func (c *Conn) attrs() []slog.Attr {
	p := &c.params
	l := line{make([]slog.Attr, 0, lineAttrs)}
	src := endOf(p.Source, p.SourceBaggage)
	dst := destinationOf(p)

	l.addr("src.addr", p.Src)
	if p.Source != nil {
		l.text("src.workload", p.Source.Name)
	} else {
		l.text("src.workload", src.canonicalService)
	}
	l.text("src.namespace", src.namespace)
	if p.MutualTLS {
		l.text("src.identity", p.SourceIdentity.String())
	}
	l.text("src.cluster", src.cluster)

	l.addr("dst.addr", p.Dst)
	if p.HBONEAddr != "" {
		l.attrs = append(l.attrs, slog.Any("dst.hbone_addr", logs.Bare(p.HBONEAddr)))
	}
	if p.Service != nil {
		l.text("dst.service", p.Service.Hostname)
	}
	if p.DestinationBaggage == nil && p.Destination != nil {
		l.text("dst.workload", p.Destination.Name)
	} else {
		l.text("dst.workload", dst.workload)
	}
	l.text("dst.namespace", dst.namespace)
	if p.MutualTLS {
		l.text("dst.identity", destinationIdentity(p).String())
	}
	l.text("dst.cluster", dst.cluster)
	l.text("direction", p.Reporter.direction())
	return l.attrs
}

// A line is an access line in the making.
type line struct{ attrs []slog.Attr }

func (l *line) text(name, value string) {
	if value != "" {
		l.attrs = append(l.attrs, slog.String(name, value))
	}
}

func (l *line) addr(name string, value netip.AddrPort) {
	if value.IsValid() {
		l.attrs = append(l.attrs, slog.Any(name, value))
	}
}

func milliseconds(d time.Duration) string {
	return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
}
