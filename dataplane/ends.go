// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/ztunnel-go/ztunnel/dataplane/relay"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
)

// wantEnds is where to note how a connection ends, if lines tell of it.
func (p *Proxy) wantEnds() *relay.Ends {
	if !p.shared.Reporter.Extras().TCPInfo {
		return nil
	}
	return &relay.Ends{}
}

// tellEnds tells a connection's line how it ended.
func tellEnds(rep *report.Conn, ends *relay.Ends) {
	if ends == nil {
		return
	}
	first, client, upstream := ends.Told()
	rep.Ended(report.Ends{First: string(first), Client: endFor(client), Upstream: endFor(upstream)})
}

func endFor(e relay.End) report.End {
	return report.End{
		How: string(e.How), Known: e.Seen,
		SRTT: e.TCP.SRTT, MinRTT: e.TCP.MinRTT, Retransmits: e.TCP.Retransmits, Lost: e.TCP.Lost,
	}
}
