// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/ztunnel-go/ztunnel/test/netlab/serve"
)

// bulkWait is for a gigabyte on a machine with other things to do.
const bulkWait = time.Minute

// upload gives the sink what it has a sum for, and returns that sum.
func (d *demo) upload(ctx context.Context, to target) (saw, sum string, err error) {
	c, err := d.open(ctx, d.client, to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(bulkWait))
	began := time.Now()
	hash := sha256.New()
	if err := copyAll(c, io.TeeReader(serve.Pattern(d.bytes), hash), d.bytes); err != nil {
		return "", "", err
	}
	if err := c.closeWrite(); err != nil {
		return "", "", err
	}
	line, err := io.ReadAll(c)
	if err != nil {
		return "", "", err
	}
	took := time.Since(began)
	if want := serve.SinkLine(d.bytes, hash) + "\n"; string(line) != want {
		return "", "", fmt.Errorf("the server says %q, want %q", line, want)
	}
	sum = hex.EncodeToString(hash.Sum(nil))
	return rate(d.bytes, took) + ", " + sum[:16] + "...", sum, nil
}

func (d *demo) download(ctx context.Context, to target, sum string) (string, error) {
	c, err := d.open(ctx, d.client, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(bulkWait))
	began := time.Now()
	if _, err := fmt.Fprintln(c, d.bytes); err != nil {
		return "", err
	}
	hash := sha256.New()
	if err := copyAll(hash, c, d.bytes); err != nil {
		return "", err
	}
	took := time.Since(began)
	if got := hex.EncodeToString(hash.Sum(nil)); got != sum {
		return "", fmt.Errorf("the sum of what came is %s, want %s", got, sum)
	}
	return rate(d.bytes, took) + ", " + sum[:16] + "...", nil
}

// copyAll copies to the end, which must come after want bytes.
func copyAll(dst io.Writer, src io.Reader, want int64) error {
	const buffer = 256 << 10
	// Only the interfaces: the calls' own ReadFrom would not be counted.
	n, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, buffer))
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if n != want {
		return fmt.Errorf("%d bytes, want %d", n, want)
	}
	return nil
}

func rate(n int64, took time.Duration) string {
	return fmt.Sprintf("%.1f Gbit/s", float64(n)*8/took.Seconds()/1e9)
}
