// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/ztunnel-go/ztunnel/test/netlab"
)

// showWire ends the recording and judges all of it. It must come before the
// bulk transfers, which would fill the memory, and after all else.
func (d *demo) showWire(context.Context) {
	w := d.wire
	d.table.check("every packet was recorded", func() (string, error) {
		if err := w.stop(); err != nil {
			return "", err
		}
		if d.pcap != "" {
			if err := w.save(d.pcap); err != nil {
				return "", err
			}
		}
		told := ""
		for _, l := range w.links {
			told += fmt.Sprintf("%s: %d\n", l.name, len(l.packets))
		}
		return told, nil
	})
	d.table.check("only ARP, ND (with MLD), 15008 and what was excepted", w.onlyTunnels)
	d.table.check("tunnels are TLS 1.3 records from ClientHello on", w.onlyTLS)
	stranger := of(d.stranger.IPv4)
	d.table.check("the marker is in no packet of the mesh's pods", func() (string, error) {
		hits, looked, first := w.find(func(p *netlab.Packet) bool { return !stranger(p) })
		if hits > 0 {
			return "", fmt.Errorf("found %d times, first in %s", hits, first)
		}
		return fmt.Sprintf("looked at %d packets, and the streams they make up", looked), nil
	})
	d.table.check("the control: it is in those of the stranger", func() (string, error) {
		hits, looked, first := w.find(stranger)
		if hits == 0 {
			return "", fmt.Errorf("found nowhere in %d packets", looked)
		}
		return fmt.Sprintf("found %d times, first in %s", hits, first), nil
	})
}
