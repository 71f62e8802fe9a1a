// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// A Client asks the pages of a running proxy, as the commands that look at one
// do.
type Client struct {
	at   string // for people
	base string
	http *http.Client
}

// NewClient asks whoever serves at a place: host:port, or the path of a Unix
// socket, which begins with a slash or a dot. It connects when it is asked.
func NewClient(at string) *Client {
	c := &Client{at: at, base: "http://" + at, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	if strings.HasPrefix(at, "/") || strings.HasPrefix(at, ".") {
		c.base = "http://localhost" // says nothing: the path is where it goes
		c.http.Transport = &http.Transport{DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", at)
			}}
	}
	return c
}

// Get returns a page, of which at most limit bytes are read. An answer that is
// not 200 is an error with its text.
func (c *Client) Get(ctx context.Context, page string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+page, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.at, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error // which repeats what follows
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, fmt.Errorf("ask the proxy at %s: %w", c.at, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", page, c.at, err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("read %s of %s: it has more than %d bytes", page, c.at, limit)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s of %s: %s: %s", page, c.at, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}
