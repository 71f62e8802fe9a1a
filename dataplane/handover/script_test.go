// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"crypto/sha256"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pb "github.com/ztunnel-go/ztunnel/dataplane/handover/handoverpb"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// A script is the other side of a conversation, word by word.
type script struct {
	t *testing.T
	*link
}

func scripted(t *testing.T, path string) script {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return script{t, &link{conn: conn}}
}

func (s script) say(m *pb.Message, fds ...int) {
	s.t.Helper()
	if err := s.send(m, fds, sendTime); err != nil {
		s.t.Fatal(err)
	}
}

func (s script) hear() packet {
	s.t.Helper()
	got, err := s.receive(time.Now().Add(10 * time.Second))
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

func hello(least, most uint32) *pb.Message {
	return &pb.Message{Kind: &pb.Message_Hello{Hello: &pb.Hello{FormatMin: least, FormatMax: most, Features: []uint32{1, 2, 9}}}}
}

// toCommit plays the new process until it has heard Commit, and returns its
// number.
func (s script) toCommit() uint64 {
	s.t.Helper()
	s.say(hello(1, 3))
	if w := s.hear().GetWelcome(); w.GetFormat() != Format || len(w.GetFeatures()) != 2 {
		s.t.Fatalf("welcome %v", w)
	}
	s.say(&pb.Message{Kind: &pb.Message_Take{Take: &pb.Take{Netns: 7}}})
	seq := s.hear().GetLot().GetSeq()
	got := s.hear()
	if got.GetDescriptors() == nil {
		s.t.Fatalf("%v instead of descriptors", got.Message)
	}
	got.close()
	s.say(&pb.Message{Kind: &pb.Message_Restored{Restored: &pb.Restored{Seq: seq}}})
	if c := s.hear().GetCommit(); c == nil || c.Seq != seq {
		s.t.Fatalf("commit %v", c)
	}
	return seq
}

// TestAfterCommitTheWordOfTheNewProcessDecides tries what it may say then.
func TestAfterCommitTheWordOfTheNewProcessDecides(t *testing.T) {
	for name, tc := range map[string]struct {
		act  func(script, uint64)
		want string // who speaks to the tunnel's peer afterwards
	}{
		"begun": {func(s script, seq uint64) { s.say(&pb.Message{Kind: &pb.Message_Begun{Begun: &pb.Begun{Seq: seq}}}) }, ""},
		"begun and gone": {func(s script, seq uint64) {
			s.say(&pb.Message{Kind: &pb.Message_Begun{Begun: &pb.Begun{Seq: seq}}})
			s.conn.Close()
		}, ""},
		"abort":    {func(s script, seq uint64) { s.say(&pb.Message{Kind: &pb.Message_Abort{Abort: &pb.Abort{Seq: seq}}}) }, "old"},
		"hangs up": {func(s script, _ uint64) { s.conn.Close() }, "old"},
		"another lot": {func(s script, seq uint64) {
			s.say(&pb.Message{Kind: &pb.Message_Begun{Begun: &pb.Begun{Seq: seq + 1}}})
			s.conn.Close()
		}, "old"},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path, pod := socketPath(t), &shelf{}
			peer := pod.put()
			o := listenWith(t, path, pod)
			s := scripted(t, path)
			tc.act(s, s.toCommit())
			if got := hears(t, peer); got != tc.want {
				t.Errorf("the peer hears %q, not %q", got, tc.want)
			}
			s.conn.Close()
			o.Close()
		})
	}
}

func TestAHelloThatIsNoneIsRefused(t *testing.T) {
	leak.Check(t)
	path := socketPath(t)
	o := listenWith(t, path, &shelf{})
	defer o.Close()
	for name, tc := range map[string]struct {
		m    *pb.Message
		want string
	}{
		"a later format": {hello(Format+1, Format+2), "formats 2 to 3"},
		"an older one":   {hello(0, 0), "formats 0 to 0"},
		"not a hello":    {&pb.Message{Kind: &pb.Message_Take{Take: &pb.Take{Netns: 7}}}, "no hello"},
	} {
		awaitThat(t, "nobody speaks", func() bool { return !o.Talks() })
		s := scripted(t, path)
		s.say(tc.m)
		if w := s.hear().GetWelcome(); !strings.Contains(w.GetRefused(), tc.want) {
			t.Errorf("%s: %v", name, w)
		}
		s.conn.Close()
	}
	whole, err := proto.Marshal(hello(1, 1))
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(whole); n++ {
		awaitThat(t, "nobody speaks", func() bool { return !o.Talks() })
		s := scripted(t, path)
		if _, err := s.conn.Write(whole[:n]); err != nil {
			t.Fatal(err)
		}
		got, err := s.receive(time.Now().Add(10 * time.Second))
		if err == nil && got.GetWelcome().GetRefused() == "" {
			t.Errorf("%d of %d bytes are a hello", n, len(whole))
		}
		s.conn.Close()
	}
}

// TestALotThatIsNotWhatWasSentIsLeft has the old process send nonsense.
func TestALotThatIsNotWhatWasSentIsLeft(t *testing.T) {
	good, err := Encode(nil, Format)
	if err != nil {
		t.Fatal(err)
	}
	right := sha256.Sum256(good)
	for name, tc := range map[string]struct {
		image  []byte
		lot    *pb.Lot
		sealed bool
	}{
		"another sum":      {good, &pb.Lot{Length: uint64(len(good)), Sha256: make([]byte, 32)}, true},
		"another length":   {good, &pb.Lot{Length: 3, Sha256: right[:]}, true},
		"not sealed":       {good, &pb.Lot{Length: uint64(len(good)), Sha256: right[:]}, false},
		"more tunnels":     {good, &pb.Lot{Length: uint64(len(good)), Sha256: right[:], Tunnels: 2}, true},
		"too many sockets": {good, &pb.Lot{Length: uint64(len(good)), Sha256: right[:], Descriptors: 1 << 30}, true},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			path := socketPath(t)
			l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			answer := make(chan *pb.Message, 1)
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.AcceptUnix()
				if err != nil {
					return
				}
				defer conn.Close()
				s := script{t, &link{conn: conn}}
				s.hear()
				s.say(welcome(&pb.Welcome{Format: Format}))
				file, err := memoryFile(tc.image)
				if !tc.sealed {
					file, err = os.CreateTemp(t.TempDir(), "x")
					file.Write(tc.image)
				}
				if err != nil {
					t.Error(err)
					return
				}
				defer file.Close()
				tc.lot.Seq = 1
				s.say(&pb.Message{Kind: &pb.Message_Lot{Lot: tc.lot}})
				s.say(&pb.Message{Kind: &pb.Message_Descriptors{Descriptors: &pb.Descriptors{Seq: 1}}}, int(file.Fd()))
				answer <- s.hear().Message
			}()
			n, err := Dial(t.Context(), NewConfig{Path: path, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			select {
			case m := <-answer:
				if m.GetAbort().GetSeq() != 1 {
					t.Errorf("the answer is %v", m)
				}
			case <-time.After(10 * time.Second):
				t.Error("no answer")
			}
			<-done
			n.Close()
		})
	}
}

// TestTheNextProcessGoesOnIfTheOldOneDies kills the old one when it is about to
// commit.
func TestTheNextProcessGoesOnIfTheOldOneDies(t *testing.T) {
	path := socketPath(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=gives and dies", pathVariable+"="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() // it is killed
	awaitThat(t, "it listens", func() bool { _, err := os.Stat(path); return err == nil })
	began := make(chan int, 1)
	n, err := Dial(t.Context(), NewConfig{
		Path: path, Logger: slog.New(slog.DiscardHandler), Check: func(uint64, *Tunnel) error { return nil },
		Begin: func(_ uint64, lot []*Tunnel) {
			for _, tunnel := range lot {
				tunnel.Close()
			}
			began <- len(lot)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Take(t.Context(), 7); err == nil {
		t.Error("a dead process has said that it is done")
	}
	select {
	case tunnels := <-began:
		if tunnels != 1 {
			t.Errorf("%d tunnels", tunnels)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody goes on")
	}
	n.Wait()
}

func FuzzPacket(f *testing.F) {
	for _, m := range []*pb.Message{hello(1, 1), {Kind: &pb.Message_Lot{Lot: &pb.Lot{Seq: 1, Sha256: []byte{1}}}}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > maxPacket {
			return
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fds[0]), "near")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := unix.Write(fds[1], b); err != nil {
			t.Fatal(err)
		}
		unix.Close(fds[1])
		got, err := (&link{conn: conn.(*net.UnixConn)}).receive(time.Now().Add(10 * time.Second))
		if err == nil && got.Message == nil {
			t.Fatal("neither a message nor an error")
		}
	})
}
