package contest

import (
	"errors"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// spanSink is an OTLP collector that only counts spans. It does not decode them, because its processor time would be taken
// from what is measured.
type spanSink struct {
	addr   string
	server *grpc.Server
	spans  atomic.Int64
}

func newSpanSink() (*spanSink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &spanSink{addr: l.Addr().String()}
	s.server = grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.MaxRecvMsgSize(64<<20),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			var request []byte
			if err := stream.RecvMsg(&request); err != nil {
				return err
			}
			s.spans.Add(countSpans(request))
			return stream.SendMsg([]byte{})
		}))
	go func() { _ = s.server.Serve(l) }() // ends with Stop
	return s, nil
}

// countSpans counts in an ExportTraceServiceRequest: resource_spans (1), of which scope_spans (2), of which spans (2).
func countSpans(request []byte) (n int64) {
	fields(request, 1, func(resource []byte) {
		fields(resource, 2, func(scope []byte) {
			fields(scope, 2, func([]byte) { n++ })
		})
	})
	return n
}

// fields calls f with each occurrence of a field that is a message.
func fields(message []byte, want protowire.Number, f func([]byte)) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return
		}
		if number == want && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			f(value)
		}
		message = message[n:]
	}
}

// rawCodec leaves messages as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, errors.New("not bytes")
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return errors.New("not bytes")
	}
	*b = data.Materialize()
	return nil
}
