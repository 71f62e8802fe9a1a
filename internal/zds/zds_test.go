// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ztunnel-go/ztunnel/internal/zds/zdspb"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

func packet(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func addPacket(t testing.TB, uid string, info *zdspb.WorkloadInfo) []byte {
	return packet(t, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{
		Add: &zdspb.AddWorkload{Uid: uid, WorkloadInfo: info},
	}})
}

var somebody = &zdspb.WorkloadInfo{Name: "pod", Namespace: "ns", ServiceAccount: "sa"}

// rights is a control message with n descriptors of the kind path opens.
func rights(t testing.TB, path string, n int) []byte {
	t.Helper()
	if n == 0 {
		return nil
	}
	var fds []int
	for range n {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return unix.UnixRights(fds...)
}

const ownNetNS = "/proc/self/ns/net"

func TestParse(t *testing.T) {
	keep := packet(t, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: "u"}}})
	del := packet(t, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: "u"}}})
	snapshot := packet(t, &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}})
	for _, tc := range []struct {
		name  string
		data  []byte
		fds   int
		flags int
		want  Request // NetNS aside
		err   string
	}{
		{name: "add", data: addPacket(t, "u", somebody), fds: 1, want: Request{Kind: Add, UID: "u", Info: &Info{"pod", "ns", "sa"}}},
		{name: "add without info", data: addPacket(t, "u", nil), fds: 1, want: Request{Kind: Add, UID: "u"}},
		{name: "keep", data: keep, want: Request{Kind: Keep, UID: "u"}},
		{name: "del", data: del, want: Request{Kind: Del, UID: "u"}},
		{name: "snapshot", data: snapshot, want: Request{Kind: SnapshotSent}},
		{name: "unknown fields are newer agents'", data: append(bytes.Clone(del), 0x7a, 1, 'x'), want: Request{Kind: Del, UID: "u"}},

		{name: "add without descriptor", data: addPacket(t, "u", somebody), err: "No control message"},
		{name: "add with two", data: addPacket(t, "u", somebody), fds: 2, err: "Expected 1 FD, got 2"},
		{name: "add with as many as can be", data: addPacket(t, "u", somebody), fds: maxDescriptors, err: "Expected 1 FD, got 253"},
		{name: "del with a descriptor", data: del, fds: 1, err: "Unexpected control message"},
		{name: "keep with a descriptor", data: keep, fds: 1, err: "Unexpected control message"},
		{name: "snapshot with a descriptor", data: snapshot, fds: 1, err: "Unexpected control message"},
		{name: "data cut short", data: addPacket(t, "u", somebody), fds: 1, flags: unix.MSG_TRUNC, err: "received truncated message"},
		{name: "control cut short", data: addPacket(t, "u", somebody), fds: 1, flags: unix.MSG_CTRUNC, err: "received truncated message"},
		{name: "nothing known", data: []byte{0x7a, 0}, fds: 1, err: "no payload"},
		{name: "no protobuf", data: []byte("\xff\xff"), fds: 1, err: "cannot parse invalid wire-format data"},
		{name: "text that is no UTF-8", data: []byte{0x12, 3, 0x12, 1, 0xff}, err: "invalid UTF-8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			got, err := parse(tc.data, rights(t, ownNetNS, tc.fds), tc.flags)
			if tc.err != "" {
				var asked *MessageError
				if !errors.As(err, &asked) || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if (got.NetNS != nil) != (tc.fds == 1) {
				t.Errorf("namespace %v of %d descriptors", got.NetNS, tc.fds)
			}
			if got.NetNS != nil {
				got.NetNS.Close()
			}
			if (got.Info == nil) != (tc.want.Info == nil) || got.Info != nil && *got.Info != *tc.want.Info {
				t.Errorf("info %v, want %v", got.Info, tc.want.Info)
			}
			if got.Kind != tc.want.Kind || got.UID != tc.want.UID {
				t.Errorf("%v %q, want %v %q", got.Kind, got.UID, tc.want.Kind, tc.want.UID)
			}
		})
	}
}

func TestADescriptorOfSomethingElseIsOnePodsTrouble(t *testing.T) {
	leak.Check(t)
	req, err := parse(addPacket(t, "u", somebody), rights(t, os.DevNull, 1), 0)
	if err != nil || req.NetNS != nil || req.NotNetNS == nil {
		t.Errorf("%+v, %v", req, err)
	}
}

func TestForeignControlMessagesAreRefused(t *testing.T) {
	leak.Check(t)
	creds := unix.UnixCredentials(&unix.Ucred{Pid: 1})
	for name, oob := range map[string][]byte{
		"alone":             creds,
		"before descriptor": append(bytes.Clone(creds), rights(t, ownNetNS, 1)...),
		"after descriptor":  append(rights(t, ownNetNS, 1), creds...),
		"garbage":           bytes.Repeat([]byte{0xff}, 24),
	} {
		if req, err := parse(addPacket(t, "u", somebody), oob, 0); err == nil {
			t.Errorf("%s: %+v", name, req)
		}
	}
}

func TestEveryPrefixOfARequest(t *testing.T) {
	leak.Check(t)
	whole := addPacket(t, "0123-uid", somebody)
	for n := range whole {
		req, err := parse(whole[:n], rights(t, ownNetNS, 1), 0)
		if err == nil {
			t.Errorf("%d of %d bytes were taken for %+v", n, len(whole), req)
			req.NetNS.Close()
		}
	}
	oob := rights(t, ownNetNS, 1)
	defer unix.Close(int(oob[len(oob)-8])) // of those that were cut off
	for n := range oob[:unix.CmsgLen(4)] {
		if req, err := parse(whole, oob[:n], 0); err == nil {
			t.Errorf("%d bytes of control message were taken for %+v", n, req)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{}, 0)
	f.Add(addPacket(f, "u", somebody), 1)
	f.Add(addPacket(f, "u", nil), 1)
	f.Add(addPacket(f, "u", somebody), 2)
	f.Add([]byte{0x12, 3, 0x12, 1, 'u'}, 0)
	f.Add([]byte{0x1a, 0}, 0)
	f.Add([]byte{0x2a, 3, 0x0a, 1, 'u'}, 0)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, 1)
	f.Fuzz(func(t *testing.T, data []byte, fds int) {
		req, err := decode(data, fds)
		if err == nil && (req.Kind == Add) != (fds == 1) {
			t.Errorf("%+v with %d descriptors", req, fds)
		}
		if err != nil && req.Kind != 0 {
			t.Errorf("a request %+v beside the error %v", req, err)
		}
	})
}

func FuzzAckText(f *testing.F) {
	f.Add("")
	f.Add("failure to start proxy : bind")
	f.Add(strings.Repeat("ü", maxAckText))
	f.Add(strings.Repeat("x", maxAckText-1) + "\xff\xfe")
	f.Fuzz(func(t *testing.T, text string) {
		got := ackText(text)
		if got == "" || len(got) > maxAckText {
			t.Errorf("%d bytes of %d", len(got), len(text))
		}
		b := packet(t, &zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Ack{Ack: &zdspb.Ack{Error: got}}})
		if len(b) > maxRequest {
			t.Errorf("an answer of %d bytes", len(b))
		}
	})
}
