package topsii

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// BenchmarkOverTCP is one request and its answer on a kept connection, from a client that costs next to nothing.
func BenchmarkOverTCP(b *testing.B) {
	s := New(Config{MaxHeld: 1_000_000})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: s}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	const answerEnd = `"size":1}`
	var calls atomic.Int64
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for pb.Next() {
			body := "jsonData=" + url.QueryEscape(startOf(calls.Add(1)))
			fmt.Fprintf(conn, "POST %s%s.json HTTP/1.1\r\nHost: x\r\n%s: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
				DefaultPathPrefix, CallStart, KeyHeader, testKey, len(body), body)
			answer, err := in.ReadString('}')
			if err != nil || !strings.HasSuffix(answer, answerEnd) {
				b.Errorf("%s %v", answer, err)
				return
			}
		}
	})
	if int64(s.Count(CallStart)) != calls.Load() {
		b.Error(s.Stats())
	}
}
