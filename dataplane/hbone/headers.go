// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ztunnel-go/ztunnel/dataplane/hbone/wire"
)

// readBlock reads the header block that begins with the frame of fh. An error
// ends the tunnel, since the decoder would lose step with the peer.
func (c *conn) readBlock(fh http2.FrameHeader) (*wire.Block, error) {
	limit := int(c.set.MaxHeaderList)
	b := &wire.Block{Left: limit}
	c.dec.SetEmitFunc(func(f hpack.HeaderField) { b.Add(wire.Field{Name: f.Name, Value: f.Value}) })
	defer c.dec.SetEmitFunc(func(hpack.HeaderField) {})
	total := 0
	for frames := 0; ; frames++ {
		total += int(fh.Length)
		if total > wire.BlockSlack*limit || frames > wire.MaxContinuations {
			return nil, wire.Complaint(EnhanceYourCalm, "header block of %d bytes in %d frames", total, frames+1)
		}
		f, err := c.readControl(fh)
		if err != nil {
			return nil, err
		}
		fragment, last := fragmentOf(f)
		if _, err := c.dec.Write(fragment); err != nil {
			return nil, wire.Complaint(Compression, "header block: %v", err)
		}
		if last {
			break
		}
		if fh, err = c.readFrameHeader(); err != nil {
			return nil, err
		}
	}
	if err := c.dec.Close(); err != nil {
		return nil, wire.Complaint(Compression, "header block: %v", err)
	}
	if b.Bomb {
		return nil, wire.Complaint(EnhanceYourCalm, "header block of %d bytes unpacks to millions", total)
	}
	if total > keepFrame {
		c.resetFramer()
	}
	return b, nil
}

// fragmentOf returns the part of a header block in f, and whether it is the
// last. The Framer lets nothing but CONTINUATION follow an unfinished block.
func fragmentOf(f http2.Frame) ([]byte, bool) {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		return f.HeaderBlockFragment(), f.HeadersEnded()
	case *http2.ContinuationFrame:
		return f.HeaderBlockFragment(), f.HeadersEnded()
	}
	panic("a header block continued by another frame")
}
