// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// rights is a control message with n descriptors of path.
func rights(t *testing.T, path string, n int) []byte {
	t.Helper()
	var fds []int
	for range n {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	if n == 0 {
		return nil
	}
	return unix.UnixRights(fds...)
}

func request(t testing.TB, op Op) []byte {
	t.Helper()
	text, err := json.Marshal(Request{Op: op, Sandbox: "s", Name: "web", Namespace: "shop", UID: "u"})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestRequestsAreReadStrictlyAndLoseNoDescriptor(t *testing.T) {
	for _, tc := range []struct {
		name   string
		packet []byte
		path   string
		fds    int
		flags  int
		err    string
	}{
		{"add", request(t, Add), ownNetNS, 1, 0, ""},
		{"check", request(t, Check), ownNetNS, 1, 0, ""},
		{"del", request(t, Del), ownNetNS, 0, 0, ""},
		{"add without a namespace", request(t, Add), ownNetNS, 0, 0, "0 descriptors"},
		{"add with two", request(t, Add), ownNetNS, 2, 0, "2 descriptors"},
		{"del with one", request(t, Del), ownNetNS, 1, 0, "1 descriptors"},
		{"another kind", request(t, Add), os.DevNull, 1, 0, "not a network namespace"},
		{"cut short", request(t, Add), ownNetNS, 1, unix.MSG_TRUNC, "cut short"},
		{"descriptors cut", request(t, Add), ownNetNS, 1, unix.MSG_CTRUNC, "cut short"},
		{"no JSON", []byte("{"), ownNetNS, 1, 0, "not what it should be"},
		{"unknown op", []byte(`{"op":"jump"}`), ownNetNS, 1, 0, `op "jump"`},
		{"nobody", []byte(`{"op":"add"}`), ownNetNS, 1, 0, "does not name a pod"},
		{"for ever", []byte(`{"op":"add","name":"a","namespace":"b","wait":-1}`), ownNetNS, 1, 0, "is to take"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			_, ns, err := parse(tc.packet, rights(t, tc.path, tc.fds), tc.flags)
			if ns != nil {
				ns.Close()
			}
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%v, want %q", err, tc.err)
			}
			if (ns != nil) != (err == nil && tc.fds == 1) {
				t.Errorf("namespace %v", ns)
			}
		})
	}
}

func TestNoPrefixOfAConfigurationOrRequestIsOne(t *testing.T) {
	whole := config("/run/x.sock")
	for n := range whole {
		if c, err := ParseConfig([]byte(whole[:n])); err == nil {
			t.Errorf("%d bytes are %+v", n, c)
		}
	}
	packet := request(t, Del)
	for n := range packet {
		if r, err := decode(packet[:n], 0); err == nil {
			t.Errorf("%d bytes are %+v", n, r)
		}
	}
	for n := range args {
		p, err := parseArgs(args[:n])
		if err == nil && (!strings.HasPrefix("web", p.name) || !strings.HasPrefix("shop", p.namespace) || !strings.HasPrefix("u-1", p.uid)) {
			t.Errorf("%q is of %+v", args[:n], p)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(config("/run/x.sock")))
	f.Add([]byte(`{"cniVersion":"0.4.0","prevResult":null}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","timeoutSeconds":100,"prevResult":{"ips":[{"address":"::/0"}]}}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := ParseConfig(stdin)
		if err != nil {
			return
		}
		if c.timeout() <= 0 || c.timeout() > maxTimeout || !strings.HasPrefix(c.Socket, "/") {
			t.Errorf("%+v", c)
		}
		if len(c.PrevResult) == 0 {
			return
		}
		all, err := addresses(c.PrevResult)
		for _, a := range all {
			if err == nil && !a.IsValid() {
				t.Errorf("address %v", a)
			}
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(request(f, Add), 1)
	f.Add(request(f, Del), 0)
	f.Add([]byte(`{"op":"add","addrs":["10.0.0.1"]}`), 1)
	f.Fuzz(func(t *testing.T, packet []byte, fds int) {
		req, err := decode(packet, fds)
		if err == nil && (req.Name == "" || (req.Op == Del) != (fds == 0)) {
			t.Errorf("%+v with %d descriptors", req, fds)
		}
	})
}

func FuzzParseArgs(f *testing.F) {
	f.Add(args)
	f.Add("K8S_POD_NAME=a;K8S_POD_NAMESPACE=b")
	f.Fuzz(func(t *testing.T, args string) {
		p, err := parseArgs(args)
		if err == nil && (p.name == "") != (p.namespace == "") {
			t.Errorf("%+v", p)
		}
	})
}
