import io.smallrye.common.annotation.Identifier;
import io.smallrye.reactive.messaging.kafka.KafkaRecord;
import io.smallrye.reactive.messaging.kafka.api.IncomingKafkaRecordMetadata;
import io.smallrye.reactive.messaging.kafka.reply.KafkaRequestReply;
import io.smallrye.reactive.messaging.kafka.reply.ReplyFailureHandler;
import jakarta.enterprise.context.ApplicationScoped;
import jakarta.enterprise.context.Dependent;
import jakarta.enterprise.inject.se.SeContainer;
import jakarta.enterprise.inject.se.SeContainerInitializer;
import jakarta.inject.Inject;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.common.header.Header;
import org.eclipse.microprofile.reactive.messaging.Channel;
import org.eclipse.microprofile.reactive.messaging.Message;

/**
 * Asks with SmallRye's own KafkaRequestReply, all questions at once, and prints what came back.
 *
 * <p>Arguments and lines are those of the Spring client beside it.
 */
@Dependent
public class Asker {
  @Inject
  @Channel("ask")
  KafkaRequestReply<String, String> channel;

  static class ErrorReply extends RuntimeException {
    final KafkaRecord<?, ?> reply;

    ErrorReply(KafkaRecord<?, ?> reply) {
      super(code(reply.getMetadata(IncomingKafkaRecordMetadata.class).orElseThrow()));
      this.reply = reply;
    }
  }

  @ApplicationScoped
  @Identifier("headrace")
  public static class ErrorReplies implements ReplyFailureHandler {
    @Override
    public Throwable handleReply(KafkaRecord<?, ?> reply) {
      return reply.getHeaders().lastHeader("headrace.error") == null ? null : new ErrorReply(reply);
    }
  }

  public static void main(String[] arguments) throws Exception {
    String channel = "mp.messaging.outgoing.ask.";
    System.setProperty(channel + "connector", "smallrye-kafka");
    System.setProperty(channel + "bootstrap.servers", arguments[0]);
    System.setProperty(channel + "topic", arguments[1]);
    System.setProperty(channel + "key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
    System.setProperty(channel + "value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
    System.setProperty(channel + "reply.topic", arguments[2]);
    System.setProperty(channel + "reply.value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
    System.setProperty(channel + "reply.auto.offset.reset", "latest");
    System.setProperty(channel + "reply.timeout", "60000");
    System.setProperty(channel + "reply.initial-assignment-timeout", "60000");
    System.setProperty(channel + "reply.failure.handler", "headrace");
    if (Integer.parseInt(arguments[3]) >= 0) {
      System.setProperty(channel + "reply.partition", arguments[3]);
    }
    String[] queries = new String(System.in.readAllBytes(), StandardCharsets.UTF_8).strip().split("\n");
    try (SeContainer container =
        SeContainerInitializer.newInstance().addBeanClasses(Asker.class, ErrorReplies.class).initialize()) {
      container.select(Asker.class).get().ask(queries);
    }
    System.exit(0); // Vert.x has threads that would keep the process.
  }

  private void ask(String[] queries) throws Exception {
    channel.waitForAssignments().await().atMost(Duration.ofSeconds(60));
    List<CompletableFuture<Message<String>>> asked = new ArrayList<>();
    for (String query : queries) {
      asked.add(channel.request(Message.of(query)).subscribeAsCompletionStage());
    }
    for (CompletableFuture<Message<String>> future : asked) {
      try {
        Message<String> reply = future.get();
        show(reply.getMetadata(IncomingKafkaRecordMetadata.class).orElseThrow(), reply.getPayload());
      } catch (ExecutionException failed) {
        if (!(failed.getCause() instanceof ErrorReply error)) {
          throw failed;
        }
        show(error.reply.getMetadata(IncomingKafkaRecordMetadata.class).orElseThrow(), error.reply.getPayload());
      }
    }
  }

  private static String code(IncomingKafkaRecordMetadata<?, ?> reply) {
    Header code = reply.getHeaders().lastHeader("headrace.error");
    return code == null ? "-" : new String(code.value(), StandardCharsets.UTF_8);
  }

  private static void show(IncomingKafkaRecordMetadata<?, ?> reply, Object value) {
    System.out.println(reply.getPartition() + " " + code(reply) + " " + value);
  }
}
