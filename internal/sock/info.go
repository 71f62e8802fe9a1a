// SPDX-License-Identifier: Apache-2.0

package sock

import (
	"math"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// TCPInfo is what the kernel knows of the way to a socket's peer (TCP_INFO).
type TCPInfo struct {
	SRTT        time.Duration // smoothed round-trip time; in whole microseconds
	MinRTT      time.Duration // the least of the latest minutes; 0: none was measured
	Retransmits uint32        // segments sent again, since the connection began
	Lost        uint32        // segments that are taken for lost at the moment
}

// InfoOf asks the kernel about a TCP socket, open or reset but not closed.
func InfoOf(fd int) (TCPInfo, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return TCPInfo{}, err
	}
	t := TCPInfo{
		SRTT:        time.Duration(info.Rtt) * time.Microsecond,
		Retransmits: info.Total_retrans,
		Lost:        info.Lost,
	}
	if info.Min_rtt != math.MaxUint32 {
		t.MinRTT = time.Duration(info.Min_rtt) * time.Microsecond
	}
	return t, nil
}

// InfoOfConn is [InfoOf] for a connection of the runtime's.
func InfoOfConn(c *net.TCPConn) (info TCPInfo, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return info, err
	}
	if cerr := raw.Control(func(fd uintptr) { info, err = InfoOf(int(fd)) }); cerr != nil {
		return info, cerr
	}
	return info, err
}
